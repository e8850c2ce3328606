from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from urllib.parse import unquote

import pytest

from headrace.catalogue.demo import DEMO_MODELS
from headrace.catalogue.file import CatalogueFile
from headrace.catalogue.load import ConfigurationError, load_catalogue, read_catalogue
from headrace.catalogue.models import Catalogue, Model, Provider, Route, RouteOptions
from headrace.errors import ModelNotFoundError
from headrace.formats.chat.support import Kind
from headrace.formats.chat.usage import TokenUsage
from headrace.formats.gemini.render import render_url

CONFIG = """
[providers.one]
kind = "openai"
base_url = "http://127.0.0.1:1/v1"
api_key = "env:SOME_KEY"
[providers.two]
kind = "openai"
base_url = "http://127.0.0.1:2/v1"
[models."gpt-4o"]
routes = ["one/gpt-4o", "two/other"]
input_price = 2.50
output_price = 10
[models."fake*"]
routes = ["two/*"]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "headrace.toml"
    path.write_text(CONFIG)
    return path


def test_routes_come_in_their_order_and_fallbacks_after_them(path: Path) -> None:
    routes = load_catalogue(path).routes("gpt-4o", ["fake-1"])
    assert [(route.provider_name, route.model) for route in routes] == [
        ("one", "gpt-4o"),
        ("two", "other"),
        ("two", "fake-1"),
    ]


def test_an_unknown_model_is_not_found(path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        load_catalogue(path).routes("gpt-4o", ["unknown-model"])
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    "name",
    [
        "fake/../other",
        "fake..",
        "fake\\other",
        "fake\nother",
        "fake\x7f",
        "fake\u202e",
        "fake\ud800",
        "fake//",
    ],
)
def test_a_glob_fits_nothing_but_a_name(path: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        load_catalogue(path).routes(name)
    with pytest.raises(ModelNotFoundError):
        load_catalogue(path).routes("gpt-4o", [name])


@pytest.mark.parametrize("name", ["a/../b", "a?key=x", "a#b", "a%2Fb", "a:generateContent", "a\r\nb", "ä"])
def test_no_name_leaves_its_place_in_a_url(name: str) -> None:
    url = render_url("https://provider.invalid/v1beta/", model=f"tunedModels/{name}", stream=False)
    parts = url.removeprefix("https://provider.invalid/v1beta/").removesuffix(":generateContent").split("/")
    assert [unquote(part) for part in parts] == ["tunedModels", *name.split("/")]
    assert not set(url.removesuffix(":generateContent").removeprefix("https:")) & set("?#:\r\n")


def globbed(glob: str, route: str, kind: Kind = "openai") -> Catalogue:
    return Catalogue(
        providers={"p": Provider(kind=kind, base_url="http://127.0.0.1:1")}, models={glob: Model(routes=[route])}
    )


@pytest.mark.parametrize(
    ("glob", "name"),
    [
        ("*", "meta-llama/Llama-3"),
        ("llama-*", "llama-org/model"),
        ("meta-llama/*", "meta-llama/Llama-3.1-8B:free"),
        ("hub/*", "hub/meta-llama/Llama-3"),
        ("ft:*", "ft:gpt-4o:acme::id"),
    ],
)
def test_a_slash_is_part_of_a_name(glob: str, name: str) -> None:
    assert [route.model for route in globbed(glob, "p/*").routes(name)] == [name]
    with pytest.raises(ModelNotFoundError):
        globbed(glob, "p/*").routes(f"{name}/../other")


def test_a_name_that_goes_into_a_url_has_the_slashes_of_its_route() -> None:
    assert globbed("tunedModels/*", "p/tunedModels/*", "gemini").routes("tunedModels/a")[0].model == "tunedModels/a"
    for name in ("a:countTokens", "a;b=c", "a?key=b", "a#b", "a%2e", "a b", "ä"):
        with pytest.raises(ModelNotFoundError):
            globbed("*", "p/*", "gemini").routes(name)
        assert globbed("*", "p/*").routes(name)[0].model == name
    for route, name in (("p/*", "tunedModels/a"), ("p/tunedModels/*", "tunedModels/a/b"), ("p/models/*", "a")):
        with pytest.raises(ModelNotFoundError):
            globbed("*", route, "gemini").routes(name)


def test_a_glob_is_no_name_to_look_up(path: Path) -> None:
    assert load_catalogue(path).names() == ["gpt-4o"]


def test_a_providers_key_comes_from_the_environment_and_never_shows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = load_catalogue(path).providers["one"]
    assert provider.secret() is None
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    assert provider.secret() == "sk-secret"
    assert "sk-secret" not in repr(provider)


def route(model: Model, name: str = "m", base_url: str = "http://127.0.0.1:1/v1") -> Route:
    return Route("p", Provider(kind="openai", base_url=base_url), name, model)


def test_cost_is_exact_and_cached_tokens_have_their_own_price() -> None:
    model = Model(
        routes=["a/b"], input_price=Decimal("2.50"), cached_input_price=Decimal("1.25"), output_price=Decimal("10.00")
    )
    assert route(model).cost(TokenUsage(1000, 10, cached_tokens=400)) == Decimal("0.0021")
    written = Model(**model.model_dump() | {"cache_write_price": Decimal(4)})
    assert route(written).cost(TokenUsage(1000, 0, cache_write_tokens=500)) == Decimal("0.00325")
    assert route(Model(routes=["a/b"])).cost(TokenUsage(1, 1)) is None


def test_a_price_that_is_left_out_is_the_known_one_of_that_provider() -> None:
    openai = "https://api.openai.com/v1"
    known = route(Model(routes=["a/b"]), "gpt-4o-mini", openai)
    assert known.cost(TokenUsage(1_000_000, 1_000_000)) == Decimal("0.75")
    half = route(Model(routes=["a/b"], output_price=Decimal(1)), "gpt-4o-mini", openai)
    assert half.cost(TokenUsage(1_000_000, 1_000_000)) == Decimal("1.15")
    assert route(Model(routes=["a/b"]), "gpt-4o-mini").cost(TokenUsage(1, 1)) is None  # served by another provider


# -- weights and fallbacks --------------------------------------------------------------------------------------------


def weighted(**weights: float) -> Catalogue:
    return Catalogue(
        providers={name: Provider(kind="openai", base_url="http://127.0.0.1:1/v1") for name in weights},
        models={
            "m": Model(routes=[RouteOptions(route=f"{name}/m", weight=weight) for name, weight in weights.items()])
        },
    )


def test_weighted_routes_get_their_share_and_a_job_keeps_its_order() -> None:
    catalogue = weighted(a=3, b=1)
    orders = [[r.provider_name for r in catalogue.routes("m", seed=f"job_{number}")] for number in range(4000)]
    assert all(sorted(order) == ["a", "b"] for order in orders)
    assert 0.72 < sum(order[0] == "a" for order in orders) / 4000 < 0.78
    assert [r.provider_name for r in catalogue.routes("m", seed="job_7")] == orders[7]


def test_routes_for_one_error_come_last_and_say_for_which() -> None:
    provider = Provider(kind="openai", base_url="http://127.0.0.1:1/v1")
    catalogue = Catalogue(
        providers={"p": provider},
        models={
            "small": Model(routes=["p/small"], context_window_fallbacks=["large"], content_filter_fallbacks=["frank"]),
            "other": Model(routes=["p/other"]),
            "large": Model(routes=["p/large"]),
            "frank": Model(routes=["p/frank"]),
        },
    )
    assert [(r.model, r.condition) for r in catalogue.routes("small", ["other"])] == [
        ("small", None),
        ("other", None),
        ("large", "context_window"),
        ("frank", "content_filter"),
    ]


# -- the built-in table -----------------------------------------------------------------------------------------------

VARIABLES = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, and no key."""
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.usefixtures("bare")
def test_without_a_key_there_is_the_demo() -> None:
    assert load_catalogue(None).names() == []
    assert CatalogueFile(None).current.names() == sorted(DEMO_MODELS)
    assert CatalogueFile(None, demo=False).current.names() == []


def test_the_demo_is_beside_what_a_file_has_and_takes_no_name_of_it(tmp_path: Path) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(CONFIG.replace("[providers.two]", "[providers.demo-slow]").replace("two/", "demo-slow/"))
    catalogue = CatalogueFile(path).current
    assert set(catalogue.names()) == {"gpt-4o", *DEMO_MODELS} - {"demo-slow"}
    assert catalogue.entries()[0] == "fake*"
    assert catalogue.routes("gpt-4o")[1].provider.base_url == "http://127.0.0.1:2/v1"
    assert len({catalogue.routes(name)[0].provider_name for name in catalogue.names()}) == len(catalogue.names())


@pytest.mark.parametrize("route", ['"gpt-4o"', '""', "3", '["one/x"]', '{route = "gpt-4o"}', '{rout = "one/x"}'])
def test_a_wrong_route_is_told_once(route: str, tmp_path: Path) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(f"{CONFIG}[models.m]\nroutes = [{route}]\n")
    catalogue, problems = read_catalogue(path)
    assert catalogue is None
    told = [problem.message for problem in problems]
    if "rout " in route:
        assert told == ["'route' is missing", "there is no such key"]
    else:
        assert len(told) == 1
        assert "is not 'provider/model'" in told[0]


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("variable", "seed"),
    [
        ("OPENAI_API_KEY", "gpt-4o"),
        ("OPENAI_API_KEY", "gpt-4o-mini"),
        ("ANTHROPIC_API_KEY", "claude-sonnet-4-6"),
        ("GEMINI_API_KEY", "gemini-1.5-pro"),
    ],
)
def test_a_key_switches_its_provider_on(variable: str, seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "sk-1")
    catalogue = load_catalogue(None)
    assert len(catalogue.providers) == 1
    assert len(catalogue.names()) >= 10
    (first,) = catalogue.routes(seed)
    assert first.provider.secret() == "sk-1"
    assert first.model == seed
    assert first.context_window
    assert first.output_limit
    assert first.abilities
    assert first.cost(TokenUsage(1000, 1000)) is not None
    for other, name in (("OPENAI_API_KEY", "gpt-4o"), ("ANTHROPIC_API_KEY", "claude-opus-4-6")):
        if other != variable:
            with pytest.raises(ModelNotFoundError):
                catalogue.find(name)


@pytest.mark.usefixtures("bare")
def test_all_three_at_once_and_what_is_newer_than_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "sk-1")
    catalogue = load_catalogue(None)
    for name, kind in (("gpt-99", "openai"), ("claude-next-9", "anthropic"), ("gemini-9-ultra", "gemini")):
        (found,) = catalogue.routes(name)
        assert (found.provider.kind, found.model) == (kind, name)


# -- mistakes in a file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("providers = [\n= 2", "headrace.toml:2:1"),
        ('[providers.x]\nkind = "gopher"\nbase_url = "http://x"', "providers.x.kind"),
        ('[providers.x]\nkind = "openai"\nbase_url = "x"', "providers.x.base_url"),
        ('[models.m]\nroutes = ["unlisted/m"]', "unlisted"),
        ("[models.m]\nroutes = []", "models.m.routes"),
        ("[modles.m]", "modles"),
    ],
    ids=["not-toml", "kind", "url", "provider", "no-route", "typo"],
)
def test_a_mistake_in_the_file_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_catalogue(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


WRONG = """\
# a comment = [not, a, table]
strict_parms = true
[providers.one]
kind = "gopher"
base_url = "api.example.com"
max_concurency = 3

[models."gpt-4o"]
routes = [
    "one/gpt-4o",   # "quoted" ] in a comment
    "oen/gpt-4o",
]
note = '''
[models.fake]
'''
[models.'b.c']
routes = [{route = "one/x", wieght = 2}]
input_price = -1
"""


def test_all_problems_are_told_with_line_and_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(WRONG)
    catalogue, problems = read_catalogue(path)
    assert catalogue is None
    told = {(problem.line, problem.path): problem.suggestion for problem in problems}
    assert told[2, "strict_parms"] == "strict_params"
    assert (4, "providers.one.kind") in told
    assert (5, "providers.one.base_url") in told
    assert told[6, "providers.one.max_concurency"] == "max_concurrency"
    assert (13, "models.gpt-4o.note") in told
    assert told[17, 'models."b.c".routes[0].wieght'] == "weight"
    assert (18, 'models."b.c".input_price') in told
    rendered = [problem.render(path) for problem in problems]
    assert f"{path}:6: providers.one.max_concurency: there is no such key. Did you mean 'max_concurrency'?" in rendered


def test_names_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(CONFIG + 'context_window_fallbacks = ["gpt-4"]\n[models.m]\nroutes = ["onee/m", "one/m"]\n')
    catalogue, problems = read_catalogue(path)
    assert catalogue is None
    fatal = [(problem.line, problem.path, problem.suggestion) for problem in problems if problem.fatal]
    assert fatal == [(15, 'models."fake*".context_window_fallbacks[0]', "gpt-4o"), (17, "models.m.routes[0]", "one")]


@pytest.mark.parametrize("name", ["google/gemini-2.5-pro", "my gemini"])
def test_a_name_that_cannot_be_in_its_routes_url_is_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / "headrace.toml"
    provider = '[providers.g]\nkind = "gemini"\nbase_url = "http://127.0.0.1/v1"\n'
    path.write_text(f'{provider}[models."{name}"]\nroutes = ["g/*"]\n')
    catalogue, problems = read_catalogue(path)
    assert catalogue is None
    assert [(problem.line, problem.path) for problem in problems] == [(5, f'models."{name}".routes[0]')]
    path.write_text(f'{provider}[models."{name}"]\nroutes = ["g/gemini-2.5-pro"]\n[models.gemini]\nroutes = ["g/*"]\n')
    assert read_catalogue(path)[0] is not None


ROUTES = """\
[providers.a]
kind = "anthropic"
base_url = "http://127.0.0.1/v1"
[providers.o]
kind = "openai"
base_url = "http://127.0.0.1/v1"
[models.m]
routes = [ROUTES]
"""


@pytest.mark.parametrize(
    ("route", "key", "told"),
    [
        ('{ route = "a/m", format = "responses" }', "format", "for providers of kind openai, not anthropic"),
        ('{ route = "o/m", format = "messages" }', "format", "input should be 'chat' or 'responses'"),
        (
            '{ route = "o/m", format = "responses", native_batch = true }',
            "native_batch",
            "of format chat, not responses",
        ),
    ],
)
def test_a_format_that_a_route_cannot_have_is_told(tmp_path: Path, route: str, key: str, told: str) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(ROUTES.replace("ROUTES", route))
    catalogue, problems = read_catalogue(path)
    assert catalogue is None
    (problem,) = (problem for problem in problems if problem.fatal)
    assert problem.path == f"models.m.routes[0].{key}"
    assert told in problem.message


def test_a_route_speaks_the_format_of_its_providers_kind_unless_it_says_another(tmp_path: Path) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(ROUTES.replace("ROUTES", '"a/m", "o/m", { route = "o/m", format = "responses" }'))
    catalogue, _ = read_catalogue(path)
    assert catalogue is not None
    assert [route.format for route in catalogue.routes("m")] == ["messages", "chat", "responses"]


def test_what_is_doubtful_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    path = tmp_path / "headrace.toml"
    path.write_text(CONFIG + '[providers.idle]\nkind = "gemini"\nbase_url = "http://x"\napi_key = "sk-1"\n')
    catalogue, problems = read_catalogue(path)
    assert catalogue is not None
    assert [problem.fatal for problem in problems] == [False] * 3
    told = "\n".join(problem.render(path) for problem in problems)
    assert f"{path}:5: warning: providers.one.api_key: the variable SOME_KEY is not set" in told
    assert f"{path}:18: warning: providers.idle.api_key: the key itself is in the file" in told
    assert "sk-1" not in told


def test_a_model_keeps_its_routes_for_the_next_request(path: Path) -> None:
    catalogue = load_catalogue(path)

    assert catalogue.routes("fake-1", seed="a") is catalogue.routes("fake-1", seed="b")
    assert [route.name for route in catalogue.routes("fake-1", ["gpt-4o"])] == ["two/fake-1", "one/gpt-4o", "two/other"]
    assert [route.name for route in catalogue.routes("fake-2")] == ["two/fake-2"]


def test_the_routes_of_very_long_names_are_not_kept(path: Path) -> None:
    catalogue, name = load_catalogue(path), "fake-" + "1" * 1000

    assert catalogue.routes(name) == catalogue.routes(name)
    assert catalogue.routes(name) is not catalogue.routes(name)


def test_a_catalogue_with_other_providers_has_their_routes(path: Path) -> None:
    catalogue = load_catalogue(path)
    assert catalogue.routes("fake-1")[0].provider.base_url == "http://127.0.0.1:2/v1"

    moved = catalogue.providers["two"].model_copy(update={"base_url": "http://127.0.0.1:3/v1"})
    changed = catalogue.having({**catalogue.providers, "two": moved})

    assert changed.routes("fake-1")[0].provider is moved
    assert catalogue.routes("fake-1")[0].provider.base_url == "http://127.0.0.1:2/v1"


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        ("anthropic", "max_tokens", "for providers of kind openai, not anthropic"),
        ("openai", "max_new_tokens", "input should be 'max_tokens' or 'max_completion_tokens'"),
    ],
)
def test_a_limit_that_a_provider_cannot_have_is_told(tmp_path: Path, kind: str, value: str, told: str) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(
        f'[providers.p]\nkind = "{kind}"\nbase_url = "http://127.0.0.1/v1"\nlimit_parameter = "{value}"\n'
        '[models.m]\nroutes = ["p/m"]\n'
    )
    catalogue, problems = read_catalogue(path)
    assert catalogue is None
    (problem,) = (problem for problem in problems if problem.fatal)
    assert problem.path == "providers.p.limit_parameter"
    assert told in problem.message
