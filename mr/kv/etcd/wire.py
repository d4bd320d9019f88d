"""The part of etcd's gRPC interface that the driver speaks (https://etcd.io/docs/v3.6/dev-guide/api_reference_v3/).

The classes of messages are made when this is imported, from the names and numbers that etcd promises to keep. They
live in a descriptor pool of their own, so that other etcd clients in the process do no harm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# A message and its fields: number, name, type. A star stands for a list.
_MESSAGES = """
ResponseHeader: 2 member_id uint64, 3 revision int64
KeyValue: 1 key bytes, 2 create_revision int64, 3 mod_revision int64, 4 version int64, 5 value bytes, 6 lease int64
RangeRequest: 1 key bytes, 2 range_end bytes, 3 limit int64, 4 revision int64, 5 sort_order int32, 8 keys_only bool,
    9 count_only bool
RangeResponse: 1 header ResponseHeader, 2 kvs *KeyValue, 3 more bool, 4 count int64
PutRequest: 1 key bytes, 2 value bytes, 3 lease int64, 4 prev_kv bool
PutResponse: 2 prev_kv KeyValue
DeleteRangeRequest: 1 key bytes, 2 range_end bytes
DeleteRangeResponse: 1 header ResponseHeader, 2 deleted int64
RequestOp: 1 request_range RangeRequest, 2 request_put PutRequest, 3 request_delete_range DeleteRangeRequest,
    4 request_txn TxnRequest
ResponseOp: 1 response_range RangeResponse, 2 response_put PutResponse, 3 response_delete_range DeleteRangeResponse,
    4 response_txn TxnResponse
Compare: 1 result int32, 2 target int32, 3 key bytes, 4 version int64, 5 create_revision int64, 6 mod_revision int64
TxnRequest: 1 compare *Compare, 2 success *RequestOp
TxnResponse: 1 header ResponseHeader, 2 succeeded bool, 3 responses *ResponseOp
LeaseGrantRequest: 1 TTL int64
LeaseGrantResponse: 2 ID int64
LeaseRevokeRequest: 1 ID int64
LeaseRevokeResponse:
LeaseKeepAliveRequest: 1 ID int64
LeaseKeepAliveResponse: 3 TTL int64
AuthenticateRequest: 1 name string, 2 password string
AuthenticateResponse: 2 token string
WatchCreateRequest: 1 key bytes, 2 range_end bytes, 3 start_revision int64, 4 progress_notify bool, 7 watch_id int64,
    8 fragment bool
WatchProgressRequest:
WatchRequest: 1 create_request WatchCreateRequest, 3 progress_request WatchProgressRequest
Event: 1 type int32, 2 kv KeyValue
WatchResponse: 1 header ResponseHeader, 2 watch_id int64, 3 created bool, 4 canceled bool, 5 compact_revision int64,
    6 cancel_reason string, 7 fragment bool, 11 events *Event
StatusRequest:
StatusResponse: 1 header ResponseHeader, 2 version string, 3 dbSize int64, 4 leader uint64, 8 errors *string,
    9 dbSizeInUse int64, 12 dbSizeQuota int64
AlarmRequest: 1 action int32
AlarmMember: 1 memberID uint64, 2 alarm int32
AlarmResponse: 2 alarms *AlarmMember
MemberListRequest:
Member: 1 ID uint64, 2 name string, 4 clientURLs *string, 5 isLearner bool
MemberListResponse: 2 members *Member
"""

DESCEND = 2
"""Of RangeRequest.sort_order; keys come ascending unless it is said."""

DELETED = 1
"""Of Event.type."""

ALARMS = {1: "NOSPACE", 2: "CORRUPT"}

# Of the message Compare: which of an entry's numbers is looked at, and the field that has what it should be.
TARGETS = {"version": (0, "version"), "created": (1, "create_revision"), "modified": (2, "mod_revision")}


def range_of(prefix: str) -> tuple[bytes, bytes]:
    """Where the keys that start with ``prefix`` begin and end: a byte follows all that a key may have."""
    return prefix.encode(errors="surrogatepass") or b"\0", prefix.encode(errors="surrogatepass") + b"\x7f"


def _make(table: str) -> dict[str, Any]:
    field = descriptor_pb2.FieldDescriptorProto
    scalars = {
        "bool": field.TYPE_BOOL,
        "bytes": field.TYPE_BYTES,
        "int32": field.TYPE_INT32,
        "int64": field.TYPE_INT64,
        "string": field.TYPE_STRING,
        "uint64": field.TYPE_UINT64,
    }
    file = descriptor_pb2.FileDescriptorProto(name="etcd.proto", package="etcd", syntax="proto3")
    for line in table.replace(",\n", ",").strip().splitlines():
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name)
        for text in filter(None, fields.split(",")):
            number, label, kind = text.split()
            added = message.field.add(name=label, number=int(number))
            added.label = field.LABEL_REPEATED if kind.startswith("*") else field.LABEL_OPTIONAL
            kind = kind.removeprefix("*")
            added.type = scalars.get(kind, field.TYPE_MESSAGE)
            if kind not in scalars:
                added.type_name = f".etcd.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"etcd.{message.name}"))
        for message in file.message_type
    }


_classes = _make(_MESSAGES)

AlarmRequest = _classes["AlarmRequest"]
AuthenticateRequest = _classes["AuthenticateRequest"]
DeleteRangeRequest = _classes["DeleteRangeRequest"]
LeaseGrantRequest = _classes["LeaseGrantRequest"]
LeaseKeepAliveRequest = _classes["LeaseKeepAliveRequest"]
LeaseRevokeRequest = _classes["LeaseRevokeRequest"]
MemberListRequest = _classes["MemberListRequest"]
RangeRequest = _classes["RangeRequest"]
StatusRequest = _classes["StatusRequest"]
TxnRequest = _classes["TxnRequest"]
WatchRequest = _classes["WatchRequest"]


class Method(NamedTuple):
    """A remote procedure. A streaming one takes and gives any number of messages."""

    path: str
    encode: Any
    decode: Any
    is_streaming: bool


def _method(service: str, name: str, message: str, *, is_streaming: bool = False) -> Method:
    encode, decode = _classes[f"{message}Request"].SerializeToString, _classes[f"{message}Response"].FromString
    return Method(f"/etcdserverpb.{service}/{name}", encode, decode, is_streaming)


RANGE = _method("KV", "Range", "Range")
DELETE_RANGE = _method("KV", "DeleteRange", "DeleteRange")
TXN = _method("KV", "Txn", "Txn")
LEASE_GRANT = _method("Lease", "LeaseGrant", "LeaseGrant")
LEASE_REVOKE = _method("Lease", "LeaseRevoke", "LeaseRevoke")
LEASE_KEEP_ALIVE = _method("Lease", "LeaseKeepAlive", "LeaseKeepAlive", is_streaming=True)
AUTHENTICATE = _method("Auth", "Authenticate", "Authenticate")
WATCH = _method("Watch", "Watch", "Watch", is_streaming=True)
STATUS = _method("Maintenance", "Status", "Status")
ALARM = _method("Maintenance", "Alarm", "Alarm")
MEMBER_LIST = _method("Cluster", "MemberList", "MemberList")
