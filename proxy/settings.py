"""Everything that can be set, in one frozen tree: name, type, default and help together.

docs/settings.md is generated from this file and tested to be up to date.
"""

from __future__ import annotations

import ipaddress
import typing
from typing import Annotated, Any

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Whole = Annotated[int, Meta(ge=0)]


BUDGETED = ("requests", "tokens", "energy_j", "carbon_g", "money_usd")
OVERHEAD = "judging"  # the team that energy spent on judging is booked on


def help_(text: str) -> Meta:
    return Meta(description=text)


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where Joulegate listens and what it accepts."""

    host: Annotated[str, help_("Address to listen on; others than loopback need keys.")] = (
        "127.0.0.1"
    )
    port: Annotated[Port, help_("Port to listen on; 0 takes a free one.")] = 4000
    workers: Annotated[int, Meta(ge=1, le=256), help_("Processes, with one set of books.")] = 1
    max_body_bytes: Annotated[
        int, Meta(ge=1024), help_("Largest request body, decompressed; more is a 413.")
    ] = 33_554_432
    cors_origins: Annotated[
        list[str], help_("Origins that browsers may call from; `*` for any.")
    ] = []
    stop_deadline_s: Annotated[
        NotNegative, help_("How long streams in flight may go on after SIGTERM.")
    ] = 30.0
    max_in_flight: Annotated[int, Meta(ge=1), help_("Requests at once; more is a 503.")] = 10_000
    failed_keys_per_minute: Annotated[
        int, Meta(ge=0, le=10_000), help_("Wrong keys a minute and address; then 429. 0: no limit.")
    ] = 60

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class Time(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long an upstream may take; each part has its own limit."""

    connect_s: Annotated[Positive, help_("To open a connection.")] = 5.0
    first_byte_s: Annotated[Positive, help_("From sending the request to the first byte.")] = 600.0
    between_chunks_s: Annotated[Positive, help_("Longest gap inside an answer.")] = 120.0
    total_s: Annotated[
        Positive, help_("For a whole answer that is not streamed; never cuts a live stream.")
    ] = 600.0


class Retries(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens when a backend fails before its first byte."""

    attempts: Annotated[
        int, Meta(ge=1, le=10), help_("Tries at most, over all backends that fit.")
    ] = 3
    wait_s: Annotated[
        NotNegative, help_("Longest wait before the second try of a backend; jittered.")
    ] = 0.25
    cooldown_s: Annotated[
        NotNegative, help_("How long a failing backend is left alone before one probe.")
    ] = 15.0
    failures: Annotated[int, Meta(ge=1), help_("Failures in a row before the cooldown.")] = 3
    health_check_s: Annotated[
        NotNegative,
        help_("Time between health checks of a backend; 0 for none. Closed APIs: while they fail."),
    ] = 10.0


class Redis(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """State shared by replicas. Without a URL it is kept in process."""

    url: Annotated[
        str | None,
        help_("`redis://`, `redis+sentinel://` or `redis+cluster://`; `rediss` for TLS."),
    ] = None
    timeout_s: Annotated[
        Positive, help_("How long a request waits for Redis before it goes on without.")
    ] = 0.25


class Ledger(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the books are kept."""

    url: Annotated[str | None, help_("SQLAlchemy address; none means SQLite in `state_dir`.")] = (
        None
    )
    fsync: Annotated[
        bool, help_("Whether a journal record is forced to the disk, not only written.")
    ] = False


class Cache(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exact-match cache of answers, never shared between teams unless both opt in."""

    enabled: Annotated[bool, help_("Whether answers are cached at all.")] = True
    ttl_s: Annotated[Positive, help_("How long an answer stays.")] = 3600.0
    max_bytes: Annotated[int, Meta(ge=0), help_("Memory for answers kept in process.")] = 67_108_864
    max_answer_bytes: Annotated[int, Meta(ge=0), help_("Larger answers are not kept.")] = 1_048_576
    sampled: Annotated[
        bool, help_("Whether answers sampled at a temperature above 0 are cached too.")
    ] = False


class WattTimeAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An account of the WattTime API."""

    username: Annotated[str, help_("User name.")]
    password: Annotated[str, help_("Password; `os.environ/NAME` reads one.")]
    regions: Annotated[
        dict[str, str], help_("Grid zone to region; none means `US-CAL-CISO: CAISO_NORTH`.")
    ] = {}
    signal: Annotated[
        str, help_("`co2_aoer`, an average; `co2_moer` is marginal and kept from the inventory.")
    ] = "co2_aoer"
    url: Annotated[str, help_("The API's address.")] = "https://api.watttime.org"


class Carbon(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Grid and data centre, for backends that do not say their own."""

    zone: Annotated[str | None, help_("Grid zone such as `DE`; none means world average.")] = None
    pue: Annotated[Annotated[float, Meta(ge=1)], help_("Facility energy by device energy.")] = 1.2
    intensity_g_per_kwh: Annotated[
        NotNegative | None, help_("Fixed intensity; none means the zone's.")
    ] = None
    intensity_file: Annotated[
        str | None, help_("CSV of `zone,hour,intensity_g_per_kwh` to use first.")
    ] = None
    electricity_maps_token: Annotated[
        str | None, help_("Token of the Electricity Maps API; none means not asked.")
    ] = None
    watttime: Annotated[
        WattTimeAccount | None, help_("WattTime account; none means not asked.")
    ] = None
    gb_api: Annotated[
        bool, help_("Whether the GB Carbon Intensity API is asked for zones `GB*`.")
    ] = False
    regions: Annotated[
        dict[str, str], help_("Cloud region to grid zone, such as `gcp:europe-west3: DE`.")
    ] = {}
    market_g_per_kwh: Annotated[
        dict[str, NotNegative],
        help_("Contractual intensity by zone, for market-based figures; none: not supplied."),
    ] = {}
    default_counterfactual: Annotated[
        str | None, help_("Backend that `auto` would have been without Joulegate.")
    ] = None


class MeterSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a backend's energy is read when it runs on this machine."""

    kind: Annotated[
        typing.Literal["nvml", "dcgm", "prometheus", "rapl", "replay", "simulated", "zeus", "none"],
        help_("What is read."),
    ] = "none"
    devices: Annotated[list[int | str], help_("GPU indices or UUIDs; empty means all.")] = []
    url: Annotated[
        str | None, help_("Exporter's address, for `dcgm`, `prometheus` and `simulated`.")
    ] = None
    series: Annotated[str | None, help_("The series to read, for `prometheus`.")] = None
    unit: Annotated[str, help_("Its unit: J, mJ, uJ, Wh, kWh, or W, mW (integrated).")] = "J"
    label: Annotated[str, help_("Its label that tells devices apart.")] = "gpu"
    file: Annotated[str | None, help_("Recording, for `replay`.")] = None
    window_s: Annotated[Positive, help_("Length of a window of energy.")] = 1.0


class DeclaredEnergy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a provider says that its answers use."""

    j_per_request: Annotated[NotNegative | None, help_("Joules of any request.")] = None
    j_per_output_token: Annotated[
        NotNegative | None, help_("Joules of an output token, reasoning ones included.")
    ] = None
    j_per_input_token: Annotated[
        NotNegative | None, help_("Joules of an input token that is not cached.")
    ] = None
    source: Annotated[str, help_("Where it says so; shown beside the figures.")] = ""
    whole: Annotated[bool, help_("Whether the building's overhead is in it.")] = True


class BackendSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One place that can serve requests."""

    model: Annotated[str, help_("Group that clients ask for, such as `llama-3.1-8b`.")]
    url: Annotated[
        str | None, help_("Address of the API, with `/v1`; none for litellm's providers.")
    ] = None
    name: Annotated[str | None, help_("Unique name; default `model@precision`.")] = None
    upstream_model: Annotated[
        str | None, help_("Model name to send; default what the client asked for.")
    ] = None
    api_key: Annotated[str | None, help_("Key sent upstream; `os.environ/NAME` reads one.")] = None
    api_key_file: Annotated[str | None, help_("File holding the key.")] = None
    provider: Annotated[
        str, help_("`openai` for any OpenAI-compatible API; others go through litellm.")
    ] = "openai"
    engine: Annotated[
        typing.Literal["vllm", "sglang", "tensorrt-llm", "tgi", "llama.cpp", "transformers", "api"],
        help_("What serves it."),
    ] = "vllm"
    engine_version: Annotated[str | None, help_("Version; default what the engine says.")] = None
    precision: Annotated[str, help_("bf16, fp16, fp8, int8, int4, ...")] = "bf16"
    gpu: Annotated[str | None, help_("GPU name, such as `H100-SXM`.")] = None
    gpu_facts: Annotated[
        dict[str, Any], help_("Data sheet of a GPU that is not known by name.")
    ] = {}
    num_gpus: Annotated[int, Meta(ge=1, le=64), help_("GPUs the engine spans.")] = 1
    params_b: Annotated[Positive | None, help_("Parameters, in billions.")] = None
    active_params_b: Annotated[Positive | None, help_("Active ones per token, in billions.")] = None
    layers: Annotated[int | None, help_("Number of layers.")] = None
    hidden_size: Annotated[int | None, help_("Width of the model.")] = None
    kv_heads: Annotated[int | None, help_("Key-value heads.")] = None
    head_dim: Annotated[int | None, help_("Size of a head.")] = None
    hf_config: Annotated[
        str | None, help_("Hugging Face `config.json` that gives the architecture.")
    ] = None
    max_num_seqs: Annotated[int | None, help_("The engine's limit on its batch.")] = None
    context_tokens: Annotated[int | None, help_("Prompt and answer together, at most.")] = None
    node: Annotated[str | None, help_("Meter that sees its GPUs; default the name.")] = None
    meter: Annotated[MeterSource | None, help_("How to read its energy from here.")] = None
    metrics_url: Annotated[str | None, help_("Engine's metrics; default `/metrics`.")] = None
    zone: Annotated[str | None, help_("Grid zone, if not the common one.")] = None
    region: Annotated[str | None, help_("Where data goes, for policies.")] = None
    pue: Annotated[Annotated[float, Meta(ge=1)] | None, help_("If not the common one.")] = None
    intensity_g_per_kwh: Annotated[NotNegative | None, help_("If not the zone's.")] = None
    owner: Annotated[str | None, help_("Team it is dedicated to; takes its idle energy.")] = None
    entitled: Annotated[
        list[str] | None, help_("Teams that share its idle energy; none means all.")
    ] = None
    embodied_g_per_gpu_hour: Annotated[
        NotNegative | None, help_("Carbon of making it, by installed GPU-hour, if known.")
    ] = None
    input_usd_per_mtok: Annotated[NotNegative | None, help_("Price of input.")] = None
    output_usd_per_mtok: Annotated[NotNegative | None, help_("Price of output.")] = None
    cached_input_usd_per_mtok: Annotated[NotNegative | None, help_("Price of cached input.")] = None
    declared_energy: Annotated[
        DeclaredEnergy | None, help_("What the provider declares; goes before EcoLogits.")
    ] = None
    quality: Annotated[Share | None, help_("How good its answers are, 0 to 1.")] = None
    quality_by_task: Annotated[dict[str, Share], help_("Likewise, for kinds of task.")] = {}
    supports_tools: Annotated[bool, help_("Whether it takes tools.")] = True
    supports_schema: Annotated[bool, help_("Whether it takes a JSON schema.")] = True
    supports_images: Annotated[
        bool | None,
        help_("Whether it takes images. None: it is asked where none is known to take them."),
    ] = None
    simulated: Annotated[bool, help_("Whether its energy is made up; shown everywhere.")] = False
    bridge: Annotated[
        list[typing.Literal["responses", "messages"]] | None,
        help_(
            "What it does not speak: answered over its chat completions by the litellm SDK. "
            "None: found out, where it answers that it has no such route."
        ),
    ] = None
    extra_headers: Annotated[dict[str, str], help_("Headers to send upstream.")] = {}
    litellm_params: Annotated[dict[str, Any], help_("Passed to the litellm SDK.")] = {}

    @property
    def full_name(self) -> str:
        return self.name or f"{self.model}@{self.precision}"


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hard limits of a team's or key's requests."""

    min_quality: Annotated[Share | None, help_("Least quality, 0 to 1.")] = None
    max_energy_j: Annotated[Positive | None, help_("Most energy of a request.")] = None
    max_carbon_g: Annotated[Positive | None, help_("Most carbon of a request.")] = None
    max_money_usd: Annotated[Positive | None, help_("Most money of a request.")] = None
    max_ttft_s: Annotated[Positive | None, help_("Longest time to the first token.")] = None
    max_latency_s: Annotated[Positive | None, help_("Longest time to the last token.")] = None
    regions: Annotated[list[str] | None, help_("Regions data may go to.")] = None
    backends: Annotated[list[str] | None, help_("Backends or groups that may be used.")] = None


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much may be used in a period."""

    per: Annotated[typing.Literal["minute", "day", "month"], help_("Period.")]
    requests: Annotated[Whole | None, help_("Requests.")] = None
    tokens: Annotated[Whole | None, help_("Tokens, in and out.")] = None
    energy_j: Annotated[Positive | None, help_("Joules.")] = None
    carbon_g: Annotated[Positive | None, help_("Grams of CO2e.")] = None
    money_usd: Annotated[Positive | None, help_("Dollars.")] = None
    soft: Annotated[Share, help_("Share after which answers carry a warning.")] = 0.8
    fallback_policy: Annotated[
        str | None, help_("Policy to serve with when it is used up, instead of refusing.")
    ] = None
    reserve: Annotated[
        typing.Literal["most", "expected"],
        help_(
            "What a request in flight takes from others: the most it may use, or what is expected."
        ),
    ] = "most"


class KeyRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one key may do, beside what its team may: it only tightens."""

    limits: Annotated[LimitSettings, help_("Hard limits of each request.")] = LimitSettings()
    budgets: Annotated[list[Budget], help_("How much it may use in a period.")] = []


class KeySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key of a team."""

    key: Annotated[str | None, help_("The key itself; `os.environ/NAME` reads one.")] = None
    sha256: Annotated[str | None, help_("Its SHA-256 in hexadecimal, instead of the key.")] = None
    name: Annotated[str | None, help_("What it is for.")] = None
    role: Annotated[typing.Literal["admin", "lead", "member"], help_("What it may see.")] = "member"
    project: Annotated[str | None, help_("Project its requests belong to.")] = None
    expires: Annotated[str | None, help_("ISO 8601 time after which it is refused.")] = None
    budgets: Annotated[list[Budget], help_("How much this key may use in a period.")] = []
    limits: Annotated[
        LimitSettings, help_("Hard limits of each request, on top of its team's.")
    ] = LimitSettings()

    @property
    def rules(self) -> KeyRules:
        """What this key may do, beside its team's rules."""
        return KeyRules(limits=self.limits, budgets=self.budgets)


class TeamJudging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether a team's requests may be answered twice, to learn which backend answers better."""

    share: Annotated[Share, help_("Share of its chats that are judged; 0 for none.")] = 0.0
    backends: Annotated[
        list[str], help_("Backends or groups its prompts may be sent to for that, the judge too.")
    ] = []


class Team(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may call, and within which limits."""

    keys: Annotated[list[str | KeySettings], help_("Its keys.")] = []
    policy: Annotated[str | None, help_("Policy of its requests.")] = None
    policies: Annotated[
        list[str] | None, help_("Policies its callers may choose themselves; none: any, []: none.")
    ] = None
    limits: Annotated[LimitSettings, help_("Hard limits of each request.")] = LimitSettings()
    budgets: Annotated[list[Budget], help_("How much it may use in a period.")] = []
    share_cache: Annotated[bool, help_("Whether it shares cached answers.")] = False
    similar_answers: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        help_("Least likeness at which a near-copy of a prompt gets its answer; none: never."),
    ] = None
    organisation: Annotated[str | None, help_("Organisation it belongs to.")] = None
    timezone: Annotated[str, help_("IANA time zone of its budgets and pages.")] = "UTC"
    judging: Annotated[TeamJudging, help_("Second answers, judged.")] = TeamJudging()
    answer_budgets: Annotated[bool, help_("Whether policies may ask for shorter answers.")] = False
    user_groups: Annotated[
        bool, help_("Whether `user` is kept as a pseudonym, for sums of five users or more.")
    ] = False


class Organisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What teams of one organisation share."""

    budgets: Annotated[list[Budget], help_("How much its teams may use together.")] = []
    timezone: Annotated[str, help_("IANA time zone of these budgets.")] = "UTC"


class Judging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Second answers to a share of requests, compared by a judge; see docs/judging.md."""

    judge: Annotated[str | None, help_("Backend that judges; none means no judging at all.")] = None
    max_energy_j_per_day: Annotated[
        Positive, help_("Most energy of second answers and judge together, each UTC day.")
    ] = 100_000.0
    waiting: Annotated[
        int, Meta(ge=1, le=10_000), help_("Requests that wait to be judged; more are dropped.")
    ] = 32


class BatchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files of requests that may take a day; see docs/batches.md."""

    enabled: Annotated[bool, help_("Whether files are taken: they hold prompts and answers.")] = (
        True
    )
    in_flight: Annotated[
        int, Meta(ge=1, le=10_000), help_("Requests of batches sent at once, by each process.")
    ] = 16
    max_requests: Annotated[int, Meta(ge=1), help_("Most requests of one batch.")] = 50_000
    max_file_bytes: Annotated[int, Meta(ge=1024), help_("Largest file.")] = 209_715_200
    max_team_bytes: Annotated[
        int, Meta(ge=1024), help_("What a team's files may take together.")
    ] = 2_147_483_648
    keep_days: Annotated[Positive, help_("How long files are kept, and batches listed.")] = 30.0
    max_intensity_g_per_kwh: Annotated[
        Positive | None, help_("Batches wait while the grid is dirtier than that.")
    ] = None
    wait_s: Annotated[
        NotNegative, Meta(le=86_400), help_("The longest they wait for a cleaner one.")
    ] = 43_200.0


class BudgetAlerts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A webhook told when a budget passes its soft threshold, or its limit."""

    url: Annotated[str | None, help_("Address to POST to; none: only header and metric.")] = None
    secret: Annotated[
        str | None, help_("Signs each message (HMAC-SHA256); `os.environ/NAME` reads one.")
    ] = None
    attempts: Annotated[int, Meta(ge=1, le=20), help_("Tries of one message.")] = 6
    wait_s: Annotated[Positive, help_("Before the second try; doubled each time.")] = 2.0
    timeout_s: Annotated[Positive, help_("Longest wait for an answer.")] = 10.0


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a value of the provider's claim stands for."""

    value: Annotated[str, help_("The claim's value, such as a group's name.")]
    role: Annotated[typing.Literal["admin", "lead", "member"], help_("What it may see.")] = "member"
    team: Annotated[str | None, help_("Whose pages; none only for administrators.")] = None


class Oidc(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An OpenID Connect provider for the dashboard's sign-in."""

    issuer: Annotated[str, help_("Its issuer, exactly as its discovery document says it.")]
    client_id: Annotated[str, help_("What Joulegate is called there.")]
    client_secret: Annotated[
        str | None, help_("`os.environ/NAME` reads one; none for a public client.")
    ] = None
    name: Annotated[str, help_("What people know it as, on the button.")] = "your organisation"
    scopes: Annotated[str, help_("Scopes to ask for; `openid` among them.")] = (
        "openid profile email"
    )
    claim: Annotated[str, help_("Claim of the ID token or user info that grants.")] = "groups"
    name_claim: Annotated[str, help_("Claim to call people by; else the subject.")] = "email"
    grants: Annotated[
        list[Grant], help_("What its values stand for; without one nobody enters.")
    ] = []


class SignInSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How people sign in to the dashboard."""

    secret: Annotated[
        str | None,
        help_("Signs sessions, 32 characters or more; the same on all machines of one dashboard."),
    ] = None
    secret_file: Annotated[str | None, help_("File that holds it; none: made and kept here.")] = (
        None
    )
    hours: Annotated[Positive, help_("How long a session lasts.")] = 12.0
    public_url: Annotated[
        str | None,
        help_("Address browsers use, such as `https://energy.example.org`, also with a path."),
    ] = None
    oidc: Annotated[Oidc | None, help_("OpenID Connect provider; none: keys and accounts.")] = None
    guests: Annotated[
        bool, help_("Whether whoever has not signed in sees everything; on loopback only.")
    ] = False


class MetersSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Agents on other nodes that send windows here."""

    tokens: Annotated[dict[str, str], help_("Node name to its agent's token.")] = {}


class Otlp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Spans of requests and nodes' energy for an OpenTelemetry collector (OTLP over HTTP)."""

    url: Annotated[
        str | None, help_("Collector, such as `http://127.0.0.1:4318`; none: nothing is sent.")
    ] = None
    headers: Annotated[dict[str, str], help_("Headers to send it, such as a token's.")] = {}
    hold_s: Annotated[
        NotNegative, help_("How long a span waits for the windows that meter it.")
    ] = 10.0


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is written to standard error."""

    level: Annotated[typing.Literal["debug", "info", "warning", "error"], help_("Least level.")] = (
        "info"
    )
    requests: Annotated[bool, help_("A line for each request, without its content.")] = False


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of a config file."""

    backends: Annotated[list[BackendSettings], help_("What can serve requests.")] = []
    teams: Annotated[dict[str, Team], help_("Who may call. None: any key, loopback only.")] = {}
    organisations: Annotated[
        dict[str, Organisation], help_("Budgets that the teams of an organisation share.")
    ] = {}
    budget_alerts: Annotated[BudgetAlerts, help_("Who is told of budgets.")] = BudgetAlerts()
    policies: Annotated[dict[str, Any], help_("Policies by name; see docs/policies.md.")] = {}
    default_policy: Annotated[str, help_("Policy of teams that name none.")] = "least_energy"
    server: Annotated[Server, help_("Listening.")] = Server()
    time: Annotated[Time, help_("Time limits.")] = Time()
    retries: Annotated[Retries, help_("Retries and cooldown.")] = Retries()
    fallbacks: Annotated[
        dict[str, list[str]], help_("Groups to try when a group cannot serve.")
    ] = {}
    redis: Annotated[Redis, help_("Shared state.")] = Redis()
    ledger: Annotated[Ledger, help_("The books.")] = Ledger()
    cache: Annotated[Cache, help_("Cached answers.")] = Cache()
    carbon: Annotated[Carbon, help_("Grid and data centre.")] = Carbon()
    meters: Annotated[MetersSettings, help_("Agents on other nodes.")] = MetersSettings()
    sign_in: Annotated[SignInSettings, help_("The dashboard's sign-in.")] = SignInSettings()
    log: Annotated[Log, help_("Logging.")] = Log()
    otlp: Annotated[Otlp, help_("Traces.")] = Otlp()
    judging: Annotated[Judging, help_("Second answers, judged.")] = Judging()
    batches: Annotated[BatchSettings, help_("Files of requests.")] = BatchSettings()
    estimator: Annotated[
        str, help_("What estimates energy and time: energy, r-ice, or `module:Class` of yours.")
    ] = "energy"
    quality_model: Annotated[
        str | None, help_("File of `joulegate learn-quality` that predicts quality and length.")
    ] = None
    quality_table: Annotated[
        str | None, help_("File of `joulegate eval --save`; counts before the backends' `quality`.")
    ] = None
    state_dir: Annotated[str, help_("Folder of journal, ledger and learnt estimators.")] = "state"

    @property
    def keys_configured(self) -> bool:
        return any(team.keys for team in self.teams.values())
