"""The queue on NSQ: any number of nsqd, named or found through nsqlookupd."""

from mr.queue.nsq.queue import NsqQueue

__all__ = ["NsqQueue"]
