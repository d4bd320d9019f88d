"""Three levels of branching, with sessions and another reducer at each, also when everything dies half way."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.served import served, until

FILES = {
    "jobs.yaml": """
steps:
  world: {map: world, reduce: largest}
  country: {map: country, reduce: join}
  city: {map: city, combine: add, reduce: add}
jobs: {census: {step: world}}
""",
    "world.py": """
def mapper(arguments):
    yield MrConfigureToMap("country")
    ctx.session_set("title", "census")
    for name, cities in dict(arguments)["countries"].items():
        yield name, [cities, dict(arguments).get("marks")]
""",
    "country.py": """
def mapper(arguments):
    yield MrConfigureToMap("city")
    for name, (cities, marks) in arguments:
        S_SET("country", name)
        for city, streets in cities.items():
            yield [name, city], [streets, marks]
""",
    "city.py": """
import time

def mapper(arguments):
    yield MrConfigureToReturn()
    for (country, city), (streets, marks) in arguments:
        S_SET("city", city)
        for people in streets:
            yield city, people
        if marks:
            with open(marks, "a") as file:
                file.write(city + "\\n")
            time.sleep(0.3)
""",
    "add.py": """
def reducer(results):
    for city, people in results:
        yield city, sum(people)
""",
    "join.py": """
def reducer(results):
    total = {city: sum(people) for city, people in results}
    yield S_GET("country"), [sum(total.values()), sorted(total)]
""",
    "largest.py": """
def reducer(results):
    ranked = sorted(((people[0], country) for country, people in results), reverse=True)
    yield S_GET("title"), [country for _, country in ranked]
    yield "keys", S_LIST()
""",
}
COUNTRIES = {
    "A": {"a1": [1, 2, 3], "a2": [4]},
    "B": {"b1": [100], "b2": [], "b3": [1, 1]},
    "C": {},
}
ANSWER = [["census", ["B", "A"]], ["keys", ["title"]]]


def test_each_level_reduces_with_its_own_reducer_and_session(tmp_path: Path, backing: dict[str, str]) -> None:
    with served(tmp_path, FILES, **backing) as platform:
        countries = {name: cities for name, cities in COUNTRIES.items() if cities}
        assert platform.post("census", countries=countries).pairs == ANSWER


def test_the_answer_survives_the_death_of_everything_between_map_and_reduce(
    tmp_path: Path, backing: dict[str, str]
) -> None:
    marks = tmp_path / "marks"
    countries = {name: cities for name, cities in COUNTRIES.items() if cities}
    with served(tmp_path, FILES, **backing) as platform:
        request_id = platform.submit("census", countries=countries, marks=str(marks))
        # Some cities are mapped and reduced, none of the levels above is.
        until(lambda: marks.exists() and len(marks.read_text().splitlines()) >= 3, 30, platform.log)
        platform.kill_everything()
        platform.start()
        assert platform.result(request_id).pairs == ANSWER
