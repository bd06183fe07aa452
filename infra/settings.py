"""Every setting of every process, read in this one place, from the environment (`NIGHTCOURT_...`).

Only composition roots call `Settings()`; everything else receives what it needs.
"""

import ipaddress
import json
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from infra.addresses import Allowed
from infra.database import with_psycopg
from infra.roles import PROCESSES
from infra.sealing import Seals
from schemas.message import VISIBILITY_SECONDS
from schemas.problems import BAD_SETTING, Problem

EngineName = Literal["llama_cpp", "openai_server", "simulated", "tensorrt_llm"]

_ORDER = (
    ("heartbeat_seconds", 2, "lease_seconds", "a lease has to survive one missed heartbeat"),
    ("sweep_seconds", 1, "lease_seconds", "a lease that ran out has to be noticed before another would run out"),
    ("sweep_seconds", 1, "hint_seconds", "a hint is sent again by a sweep, and no sooner than one comes"),
    ("poll_seconds", 1, "sweep_seconds", "the dispatcher sweeps between two polls, and no oftener"),
    ("heartbeat_seconds", 1, "engine_deadline_seconds", "a worker has to be heard of before it is taken for hung"),
)
"""Times of which the first has to be well under the second: (first, factor, second, why)."""

_ENGINE_TIMES = {
    "openai_server": (("engine_request_seconds", 0.0), ("engine_patience_seconds", 1.0)),
    "tensorrt_llm": (("engine_timeout_seconds", 205.0),),
}
"""What an engine itself waits for, at the longest, and how much longer a call of it may take than that."""


def _keys(value: SecretStr | None, file: Path | None) -> list[str]:
    text = value.get_secret_value().replace(",", "\n") if value else file.read_text() if file else ""
    return [key.strip() for key in text.splitlines() if key.strip()]


def is_url(text: str, schemes: set[str]) -> bool:
    """Tell whether a text is a URL of one of these schemes, with a host, and with a port that can be, if any."""
    try:
        parts = urlsplit(text)
        somewhere = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or brackets that do not close
        return False
    return somewhere and text.partition("://")[0].lower() in schemes


class Settings(BaseSettings):
    """The settings, each with its default and its unit. Times are seconds."""

    model_config = SettingsConfigDict(
        env_prefix="NIGHTCOURT_", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    # -- where things are
    database_url: SecretStr = SecretStr("postgresql://localhost/nightcourt")
    """Postgres, in libpq's URL form: for `nightcourt migrate` and `purge` by the login that owns the tables, for each
    process of the service by its own role."""
    role_passwords: SecretStr | None = None
    """For `nightcourt migrate`: what the processes may log in to Postgres by, as a JSON object with a password for
    each of `api`, `dispatcher`, `worker` and `callbacks`. Those that are not named stay as they are."""
    redis_url: SecretStr = SecretStr("redis://localhost:6379/0")
    """Redis, for hints only: nothing is lost when it is. With `rediss://` over TLS, by a certificate that is good for
    the system's authorities, or for those of the file in the URL's query: `?ssl_ca_certs=/etc/ssl/redis-ca.pem`."""
    secret_keys: SecretStr | None = None
    """What secrets are sealed by in the database: keys of 64 hexadecimal digits (`openssl rand -hex 32`), with commas
    between. The first seals, the others open what they sealed; `nightcourt migrate` seals all of it by the first."""
    secret_keys_file: Path | None = None
    """A file with such keys, one a line, in place of the variable. The API, the callback process and `migrate` need
    either; `nightcourt up` makes a key of its own where there is none."""
    data_dir: Path | None = None
    """Where the embedded stack keeps everything; the user's data folder when unset."""

    server: str | None = None
    """The URL of the API, for the command line; the embedded stack that runs on `data_dir` when unset."""
    key: SecretStr | None = None
    """The key that the command line and the Python client send. Where it is unset, the command line sends the embedded
    stack that stack's own."""
    first_key_file: Path | None = None
    """A file that `nightcourt migrate` keeps a good key of the tenant `default` in, for all scopes. `nightcourt up` has
    one in its folder; a deployment gets its first key by `nightcourt keys create`."""

    # -- the HTTP edge
    host: str = "127.0.0.1"
    """The address of the API. Whoever reaches it and has a key may use it."""
    port: int = Field(default=8300, ge=0, le=65535)
    """The port of the API; 0 for any free one, under `nightcourt up`."""
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses and networks of the proxies before the API, with commas between: by their `X-Forwarded-For` it is told
    who asks, for slowing down whoever sends wrong keys. Without one that is who connects."""
    max_body_bytes: PositiveInt = 4 * 1024 * 1024
    """A request body above this is refused before it is read."""
    requests_per_second: PositiveFloat = 300.0
    """Requests that a key may send to one process of the API, ten seconds' worth at once. This and the three
    that follow hold for keys that have no limit of their own, as `max_body_bytes` does."""
    queued_comparisons: PositiveInt = 2_000_000
    """Comparisons that a tenant may have undecided when it files more."""
    concurrent_batches: PositiveInt = 100
    """Batches of a tenant that may have not ended when it makes another."""
    tokens_per_day: PositiveInt | None = None
    """Prompt tokens that may be judged for a tenant between one midnight UTC and the next before it may file no more;
    as many as there are when unset."""
    max_file_bytes: PositiveInt = 4 * 1024 * 1024 * 1024
    """An uploaded file above this, decompressed where it is compressed, is refused."""
    max_wait_seconds: PositiveFloat = 60.0
    """The longest that `Prefer: wait` may hold a request."""

    # -- the docket
    lease_seconds: PositiveFloat = 60.0
    """How long a claim holds without being renewed."""
    heartbeat_seconds: PositiveFloat = 10.0
    """How often a worker renews its leases and says that it is alive."""
    sweep_seconds: PositiveFloat = 5.0
    """How often the dispatcher looks for leases that ran out, and for hints that were lost."""
    hint_seconds: PositiveFloat = 30.0
    """A released shard that nobody claimed for this long is hinted again, unless Redis holds a hint of each."""
    poll_seconds: PositiveFloat = 0.02
    """How often the dispatcher looks for work that is due."""
    drain_seconds: PositiveFloat = 20.0
    """How long a worker that is told to end may go on with what it has begun; then that goes back, uncounted. What runs
    it has to give it half as long again to end (docs/deployment.md, "Time to end")."""
    engine_deadline_seconds: PositiveFloat = 600.0
    """A worker whose engine is at one call for longer than this ends itself, so that the work is tried again."""
    max_attempts: PositiveInt = 3
    """How often a comparison is tried before it is errored; a shard of several is split the first time it fails."""

    clock_shift_seconds: float = 0.0
    """Added to the clock of windows, `not_before` and all times of callbacks; to try them out without waiting."""

    # -- callbacks
    callback_allow: Annotated[tuple[str, ...], NoDecode] = ()
    """Where callbacks may go beyond the public internet: host names, addresses and networks, with commas between.
    Plain http is taken for the hosts and addresses listed here alone. Where this is unset, `nightcourt up` lists this
    machine, as long as its API listens for this machine alone."""

    callback_slots: PositiveInt = 256
    """Callbacks under way at a time, over all callback processes; each has as many threads."""
    callback_concurrency: PositiveInt = 8
    """Callbacks under way to one endpoint at a time, while it does well; one while it is new or failing."""
    callback_deadline_seconds: PositiveFloat = 15.0
    """How long one attempt may take, from the name of the receiver to its answer. What runs the callback process has to
    give it half as long again to end (docs/deployment.md, "Time to end")."""

    # -- what is kept
    retention_days: float = Field(default=0.0, ge=0.0)
    """What ended longer ago than this is deleted, contents, verdicts and all; 0 keeps everything."""

    # -- the judge
    engine: EngineName = "llama_cpp"
    """What runs the model. The simulated engine asks none, and says so in every verdict."""
    model: Path | None = None
    """A GGUF file for the llama_cpp engine; the embedded model when unset."""
    adapter: Path | None = None
    """A LoRA adapter in GGUF over that model; over the embedded model, the pocket critic when unset."""
    threads: PositiveInt | None = None
    """CPU threads of the llama_cpp engine; the machine's cores when unset."""
    context_tokens: PositiveInt = 8192
    """The longest prompt, in tokens, that the llama_cpp engine makes room for; the model's own limit caps it. For the
    openai_server engine, the server's limit where the server does not say."""
    engine_url: str | None = None
    """The OpenAI-compatible server that the openai_server engine asks, for instance http://host:8000/v1."""
    engine_key: SecretStr | None = None
    """The key sent to that server as `Authorization: Bearer`."""
    engine_model: str | None = None
    """The model's name on that server; needed where it serves several."""
    engine_tokenizer: Path | None = None
    """The folder of the model's tokenizer.json and tokenizer_config.json; needed for every server but llama.cpp's."""
    engine_requests: PositiveInt = 16
    """Requests that one worker has under way at that server."""
    engine_request_seconds: PositiveFloat = 120.0
    """How long one request may take there, waiting in the server's queue included."""
    engine_patience_seconds: PositiveFloat = 300.0
    """How long one step may take there, tried again while that server is overloaded or away, before the attempt counts
    as failed."""
    engine_ca_file: Path | None = None
    """Certificates to trust that server by, in PEM, instead of the usual authorities."""
    engine_folder: Path | None = None
    """What `nightcourt engine build` made, for the tensorrt_llm engine. On a local disk: each prompt reads in it."""
    engine_memory_share: float = Field(default=0.85, gt=0.0, lt=1.0)
    """How much of the GPU memory that the weights leave free the tensorrt_llm engine takes for its KV cache."""
    engine_reuse: bool = True
    """Whether the tensorrt_llm engine uses again what it computed for prompts of a tenant that begin alike. Without, it
    is slower, and the same prompt gets the same odds more nearly."""
    engine_timeout_seconds: PositiveFloat = 120.0
    """How long the tensorrt_llm engine may take for one step; then its prompts are called off and tried again."""
    workers: PositiveInt | None = None
    """Worker processes that the embedded stack runs; one, or one a core with the simulated engine, when unset."""
    slots: PositiveInt = 8
    """Shards that one worker works on at a time."""
    bulk_slots: PositiveInt = 4
    """Of the slots, how many bulk shards may take; the rest stay free for people who wait."""
    mass_threshold: float = Field(default=0.05, ge=0.0, le=1.0)
    """A ballot with less probability than this on A and B together is no verdict. The embedded model by
    itself puts .15 to .40 there; a judge trained to say A or B, such as the pocket critic, puts nearly everything
    there, and may be held to more."""
    calibration_file: Path | None = None
    """What `nightcourt eval calibrate` wrote: the temperature of one judge. A worker with another judge refuses it."""
    simulated_tokens_per_second: float = Field(default=0.0, ge=0.0)
    """The simulated engine's speed; 0 answers at once."""
    simulated_call_log: Path | None = None
    """A file to which the simulated engine appends a hash of every prompt it is asked, for tests that count."""
    simulated_strengths: bool = False
    """Let the simulated engine prefer by marks in the answers, such as `{{strength=1.5}}`, for trying out evals on
    verdicts whose truth is known."""

    simulated_poison: str | None = None
    """A text at which the simulated engine ends its process as a crash would, for tests of recovery."""
    simulated_hang: str | None = None
    """A text at which the simulated engine hangs, for tests of the watchdog."""
    simulated_fail: str | None = None
    """A text at which a step of the simulated engine fails, for tests of further attempts."""

    # -- what watches over a process
    presence_dir: Path | None = None
    """A folder on a disk of this machine where each worker holds a locked file while it lives. By it the next one to
    start here knows who died, and brings back at once what they held; without it that takes as long as a lease."""
    pulse_file: Path | None = None
    """A file that the dispatcher and workers touch as often as they get on; `python -m infra.pulse` looks at it."""

    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Where dispatcher, workers and callback processes serve `/metrics` for Prometheus; 0 is nowhere, except that
    `nightcourt up` then gives each a free port. The API serves its own on its own port."""
    metrics_host: str = "127.0.0.1"
    """The address of that port. Whoever reaches it may read the numbers, which hold nothing that anybody sent."""

    traces_endpoint: str | None = None
    """Who collects traces: the URL of OTLP over HTTP, such as http://collector:4318; without it none are made."""
    traces_share: float = Field(default=1.0, ge=0.0, le=1.0)
    """Of the requests, and of the runs of batches' shards, how many are traced. The same in every process."""

    # -- logs
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged. At no level does a line hold what anybody sent."""
    log_format: Literal["auto", "console", "json"] = "auto"
    """'auto' is console on a terminal and JSON elsewhere."""

    @field_validator("callback_allow", "trusted_proxies", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(entry.strip() for entry in value.split(",") if entry.strip())
        return value

    @field_validator("database_url")
    @classmethod
    def _of_postgres(cls, value: SecretStr) -> SecretStr:
        with_psycopg(value.get_secret_value())
        return value

    @field_validator("redis_url")
    @classmethod
    def _of_redis(cls, value: SecretStr) -> SecretStr:
        if not is_url(url := value.get_secret_value(), {"redis", "rediss"}) or not url.startswith("redis"):  # no REDIS:
            raise ValueError("takes the URL of a Redis: redis://USER:PASSWORD@HOST:6379/0")
        return value

    @field_validator("traces_endpoint")
    @classmethod
    def _of_a_collector(cls, value: str | None) -> str | None:
        if value and not is_url(value, {"http", "https"}):  # an empty one is none: compose passes on what is unset so
            raise ValueError("takes the URL of OTLP over HTTP: http://HOST:4318")
        return value

    @field_validator("callback_allow")
    @classmethod
    def _allowable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        Allowed.parse(value)
        return value

    @model_validator(mode="after")
    def _keys_are_good(self) -> "Settings":
        if self.secret_keys is not None and self.secret_keys_file is not None:
            raise ValueError(
                "NIGHTCOURT_SECRET_KEYS and NIGHTCOURT_SECRET_KEYS_FILE are two places for the same: set one"
            )
        name = "NIGHTCOURT_SECRET_KEYS_FILE" if self.secret_keys_file else "NIGHTCOURT_SECRET_KEYS"
        try:
            self.seals()
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
        return self

    @field_validator("role_passwords")
    @classmethod
    def _passwords_of_processes(cls, value: SecretStr | None) -> SecretStr | None:
        given = json.loads(value.get_secret_value()) if value else {}
        if not isinstance(given, dict) or not all(isinstance(each, str) and each for each in given.values()):
            raise ValueError("takes a JSON object of passwords")
        if unknown := set(given) - set(PROCESSES):
            raise ValueError(f"knows no process {', '.join(sorted(unknown))}, but {', '.join(PROCESSES)}")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            ipaddress.ip_network(each)
        return value

    @model_validator(mode="after")
    def _engine_has_its_server(self) -> "Settings":
        if self.engine != "openai_server":
            return self
        url = self.engine_url or ""
        if not is_url(url, {"http", "https"}) or urlsplit(url).username is not None or urlsplit(url).query:
            raise ValueError(
                "NIGHTCOURT_ENGINE_URL must be the http or https URL of a server for the openai_server engine, such as "
                "http://host:8000/v1, without a user name in it; NIGHTCOURT_ENGINE_KEY takes the key"
            )
        return self

    @model_validator(mode="after")
    def _engine_has_its_folder(self) -> "Settings":
        if self.engine == "tensorrt_llm" and self.engine_folder is None:
            raise ValueError(
                "NIGHTCOURT_ENGINE_FOLDER must name an engine folder for the tensorrt_llm engine; "
                "`nightcourt engine build` makes one"
            )
        return self

    @model_validator(mode="after")
    def _times_agree(self) -> "Settings":
        for smaller, factor, larger, why in _ORDER:
            low, high = getattr(self, smaller), getattr(self, larger)
            if low * factor >= high:
                bound = f"NIGHTCOURT_{larger.upper()} ({high:g})"
                raise ValueError(
                    f"NIGHTCOURT_{smaller.upper()} ({low:g}) must be under "
                    f"{bound if factor == 1 else 'half of ' + bound}: {why}"
                )
        for name, more in _ENGINE_TIMES.get(self.engine, ()):
            if getattr(self, name) + more >= self.engine_deadline_seconds:
                raise ValueError(
                    f"NIGHTCOURT_{name.upper()} ({getattr(self, name):g}) must be{f' {more:g} s' if more else ''}"
                    f" under NIGHTCOURT_ENGINE_DEADLINE_SECONDS ({self.engine_deadline_seconds:g}): an engine that "
                    "fails in time must not be taken for one that hangs"
                )
        for name in ("lease_seconds", "hint_seconds", "drain_seconds"):
            if getattr(self, name) >= VISIBILITY_SECONDS:
                raise ValueError(
                    f"NIGHTCOURT_{name.upper()} ({getattr(self, name):g}) must be under {VISIBILITY_SECONDS:g}, after "
                    "which Redis takes a hint for lost and gives it to another worker: our own clocks have to be sooner"
                )
        if self.bulk_slots >= self.slots:
            raise ValueError(
                f"NIGHTCOURT_BULK_SLOTS ({self.bulk_slots}) must be under NIGHTCOURT_SLOTS ({self.slots}): one slot at "
                "least stays free for interactive work"
            )
        return self

    @property
    def worker_seconds(self) -> float:
        """For how long a worker that is not heard of is counted on."""
        return self.heartbeat_seconds * 3

    def seals(self) -> Seals:
        """Give what secrets are sealed by; nothing where no key is set."""
        return Seals(_keys(self.secret_keys, self.secret_keys_file))

    def require_seals(self) -> None:
        """See that there is something to seal by.

        Raises:
            Problem: no key is set.
        """
        if not self.seals():
            raise Problem(
                BAD_SETTING,
                "NIGHTCOURT_SECRET_KEYS_FILE or NIGHTCOURT_SECRET_KEYS: takes the key that callback secrets are sealed "
                "by in the database; `openssl rand -hex 32` makes one.",
            )

    def passwords(self) -> dict[str, str]:
        """Give the passwords of roles, by process; none where none are set."""
        given: dict[str, str] = json.loads(self.role_passwords.get_secret_value()) if self.role_passwords else {}
        return given


def load(**overrides: Any) -> Settings:
    """Read the settings, some of them given by hand.

    Raises:
        Problem: a setting has a value it cannot have; the detail names its variable.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = "_".join(str(step) for step in first["loc"]).upper()
        message = first["msg"].removeprefix("Value error, ")
        detail = f"NIGHTCOURT_{name}: {message}" if name else message
        raise Problem(BAD_SETTING, f"{detail}.") from None
