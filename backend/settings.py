"""Every setting of the API and the worker, read once from `CALIFT_…` variables.

Each may be given by file as well: `CALIFT_TOKEN_FILE=/run/secrets/token` is read where
`CALIFT_TOKEN` is not set.

The defaults are the embedded stack: everything under `CALIFT_HOME`, on this machine alone. Binding
to another address is refused until tokens and host names are given.
"""

import contextlib
import hmac
import ipaddress
import os
import secrets
import stat
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from calift_core.errors import SpecError, StorageError, reason_of
from calift_core.files import storage_error
from calift_core.home import calift_home
from calift_core.schema.places import expanded

#: Names that reach a loopback bind. Others would let a web page rebind its own name to it.
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


class _Files(PydanticBaseSettingsSource):
    """`CALIFT_NAME_FILE`: a file that holds the value of `CALIFT_NAME`, as secrets are mounted.

    `CALIFT_TOKEN_FILE` is a setting of its own, whose file is made where it is not there.
    """

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The content of the file that the environment names, without the newline at its end."""
        name = f"CALIFT_{field_name.upper()}_FILE"
        path = os.environ.get(name, "") if field_name not in ("token", "token_file") else ""
        if not path:
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").rstrip("\r\n"), field_name, False
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(
                f"{name}={path} cannot be read: {reason_of(error)}",
                hint="It must be a text file that the service's user can read.",
            ) from error

    def __call__(self) -> dict[str, Any]:
        """Every setting that is given by file."""
        fields = self.settings_cls.model_fields.items()
        found = {name: self.get_field_value(field, name)[0] for name, field in fields}
        return {name: value for name, value in found.items() if value is not None}


def _with_password(url: str, password: SecretStr | None) -> str:
    """A URL of a database or a broker with a password that is given apart."""
    place = urlsplit(url)
    if password is None or place.hostname is None or place.password is not None:
        return url
    user, _, host = place.netloc.rpartition("@")
    secret = quote(password.get_secret_value(), safe="")
    return place._replace(netloc=f"{user}:{secret}@{host}").geturl()


class Settings(BaseSettings):
    """Settings of the service; `CALIFT_PORT=9000` sets `port`. Lists are comma-separated.

    Attributes:
        home: folder that holds all that the embedded stack keeps.
        artifacts: where the content-addressed files are, which the API and all workers share: a
            folder, or `s3://bucket/prefix`.
        artifacts_cache_bytes: how much of a bucket is kept in the folder.
        s3_endpoint_url: of an object store that is not Amazon's.
        s3_access_key: with `s3_secret_key`; none: what boto finds by itself.
        s3_secret_key: see `s3_access_key`.
        s3_part_bytes: files of twice this size or more go to a bucket in parts of this size.
        database_url: SQLAlchemy URL; SQLite (local disk only) or Postgres.
        database_password: for a URL that holds none.
        broker_url: Celery URL of the Redis or Valkey server.
        broker_password: for a URL that holds none.
        host: address the API binds to.
        port: port the API binds to.
        allowed_hosts: host names that requests may name; `*` allows every name.
        token: an admin token (`id.secret`); none: the one in `token_file`.
        token_file: where the embedded token is kept (0600).
        lease_ttl_s: how long a worker may be silent before its run is given to another.
        heartbeat_s: how often a worker renews its lease.
        sweep_s: how often expired leases are looked for.
        relay_s: how often unsent messages are looked for when nothing wakes the relay.
        redispatch_s: age after which the message of a queued run is sent again.
        worker_gpus: GPUs of a worker: it takes runs on that many or fewer, one run at a time.
        session_ttl_s: how long a log-in to the dashboard lasts.
        oidc_issuer: the OpenID provider that people log in to the dashboard with; none: tokens.
        oidc_client_id: of the dashboard at that provider.
        oidc_readers: who may read: addresses, `@example.org` for a domain, `*` for everybody.
        oidc_submitters: who may submit runs too.
        oidc_admins: who may do everything.
        max_upload_bytes: largest predictions file, and largest zip of images, that is taken in.
        quota_data_bytes: zips of images that an owner may have here; 0: no limit.
        models_url: where `python -m backend models` answers, which loads models for this process;
            empty: they are loaded here.
        max_queued: runs that may wait per token.
        quota_queued: runs that may wait per owner; 0: any number.
        quota_running: runs of an owner that may work at once, the others wait; 0: any number.
        quota_artifact_bytes: an owner whose files take up more submits no run; 0: no limit.
        requests_per_minute: requests per token, averaged; bursts of a quarter are allowed.
        max_streams: event streams open at once; an owner may have half of them.
        free_space_floor_bytes: no file is stored that would leave less than this.
        artifact_grace_s: an unreferenced file younger than this is not collected.
        retain_days: what `calift prune` removes is removed by itself after so many days; 0: never.
        audit_days: how long the audit log is kept.
        metrics_open: whether `/metrics` answers without a token on an exposed bind too.
        log_format: `text`, or `json` for one JSON object a line.
        data_roots: folders that an exposed service may read data and weights from.
        allow_remote_models: whether runs may name `hf-hub:` models and open_clip tags that are
            not on this machine yet.
    """

    model_config = SettingsConfigDict(
        env_prefix="CALIFT_", extra="ignore", frozen=True, populate_by_name=True
    )

    home: Path = Field(default_factory=calift_home)
    artifacts: str = ""
    artifacts_cache_bytes: int = Field(default=20 << 30, ge=0)
    s3_endpoint_url: str = ""
    s3_access_key: SecretStr | None = None
    s3_secret_key: SecretStr | None = None
    s3_part_bytes: int = Field(default=50 << 20, ge=5 << 20)
    database_url: str = ""
    database_password: SecretStr | None = None
    broker_url: str = ""
    broker_password: SecretStr | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    token: SecretStr | None = None
    token_file: Path | None = None
    lease_ttl_s: float = Field(default=60.0, gt=0)
    heartbeat_s: float = Field(default=15.0, gt=0)
    sweep_s: float = Field(default=5.0, gt=0)
    relay_s: float = Field(default=1.0, gt=0)
    redispatch_s: float = Field(default=120.0, gt=0)
    worker_gpus: int = Field(default=1, ge=1, le=64)
    session_ttl_s: float = Field(default=7 * 86_400.0, gt=0)
    oidc_issuer: str = ""
    oidc_client_id: str = ""
    oidc_readers: Annotated[tuple[str, ...], NoDecode] = ()
    oidc_submitters: Annotated[tuple[str, ...], NoDecode] = ()
    oidc_admins: Annotated[tuple[str, ...], NoDecode] = ()
    max_upload_bytes: int = Field(default=512 << 20, ge=1024)
    quota_data_bytes: int = Field(default=20 << 30, ge=0)
    models_url: str = Field(default="", pattern=r"^(https?://[^/?#@]+/?)?$")
    max_queued: int = Field(default=1000, ge=1)
    quota_queued: int = Field(default=0, ge=0)
    quota_running: int = Field(default=0, ge=0)
    quota_artifact_bytes: int = Field(default=0, ge=0)
    requests_per_minute: int = Field(default=3000, ge=1)
    max_streams: int = Field(default=512, ge=1)
    free_space_floor_bytes: int = Field(default=512 << 20, ge=0)
    artifact_grace_s: float = Field(default=600.0, ge=0)
    retain_days: float = Field(default=0.0, ge=0)
    audit_days: float = Field(default=365.0, gt=0)
    metrics_open: bool = False
    webhook_url: str = ""
    webhook_secret: SecretStr | None = None
    webhook_form: Literal["json", "slack"] = "json"
    webhook_private: bool = False
    log_format: Literal["text", "json"] = "text"
    data_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    allow_remote_models: bool | None = None

    _artifacts: tuple[Path, str] = PrivateAttr(default=(Path(), ""))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """A variable counts before the file that another names."""
        return init_settings, env_settings, _Files(settings_cls)

    @field_validator(
        "allowed_hosts", "oidc_readers", "oidc_submitters", "oidc_admins", mode="before"
    )
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        return (
            [v.strip() for v in value.split(",") if v.strip()] if isinstance(value, str) else value
        )

    @field_validator("data_roots", mode="before")
    @classmethod
    def _path_list(cls, value: object) -> object:
        return [v for v in value.split(os.pathsep) if v] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fill(self) -> Self:
        if self.heartbeat_s >= self.lease_ttl_s:
            raise ValueError(
                f"heartbeat_s must be less than lease_ttl_s, got {self.heartbeat_s:g} and "
                f"{self.lease_ttl_s:g}"
            )
        home = expanded(self.home).absolute()
        database = self.database_url or f"sqlite:///{home / 'calift.db'}"
        broker = self.broker_url or f"redis+socket://{home / 'run' / 'broker.sock'}?virtual_host=0"
        fill = {
            "home": home,
            "database_url": _with_password(database, self.database_password),
            "broker_url": _with_password(broker, self.broker_password),
            "token_file": self.token_file or home / "token",
            "allow_remote_models": self.is_loopback
            if self.allow_remote_models is None
            else self.allow_remote_models,
        }
        for name, value in fill.items():
            object.__setattr__(self, name, value)  # frozen after this
        self._artifacts = self._artifacts_place(home)
        return self

    def _artifacts_place(self, home: Path) -> tuple[Path, str]:
        """The folder of the files or of their copies, and the bucket."""
        kind, mark, rest = self.artifacts.partition("://")
        if kind == "s3" and rest.strip("/"):
            return home / "artifact-copies", self.artifacts.rstrip("/")
        if mark and not (kind == "file" and rest.startswith("/")):
            raise ValueError(
                "artifacts must be a folder, file:///folder or s3://bucket/prefix, got "
                f"{self.artifacts!r}"
            )
        folder = rest if mark else self.artifacts
        return (expanded(Path(folder)).absolute() if folder else home / "artifacts"), ""

    @property
    def artifacts_dir(self) -> Path:
        """The folder of the files; with a bucket, that of the copies of what is read."""
        return self._artifacts[0]

    @property
    def artifacts_url(self) -> str:
        """The bucket that the files are in; empty where they are in `artifacts_dir`."""
        return self._artifacts[1]

    @property
    def is_loopback(self) -> bool:
        """Whether the bind can be reached from this machine only."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host names that a request may name, without port."""
        return self.allowed_hosts or (LOOPBACK_HOSTS if self.is_loopback else ())

    @property
    def uploads_dir(self) -> Path:
        """Where uploads lie while they are checked."""
        return self.home / "uploads"

    @property
    def datasets_dir(self) -> Path:
        """Zips of images that were brought by the browser or the API: `OWNER/SHA/NAME.zip`."""
        return self.home / "datasets"

    @property
    def jobs_dir(self) -> Path:
        """Working folders of runners: `RUN/ATTEMPT/`."""
        return self.home / "jobs"

    @property
    def token_hint(self) -> str:
        """Where people who lack a token find one, in this deployment."""
        if self.token is None:
            return (
                "Send `Authorization: Bearer TOKEN`; `calift up` keeps it in CALIFT_HOME/token, "
                "where the command finds it."
            )
        return (
            "Send `Authorization: Bearer TOKEN`: the CALIFT_TOKEN that the service was started "
            "with (in `.env` with compose), or one of your own that "
            "`python -m backend token add NAME` prints where the service runs."
        )

    def check_exposure(self) -> None:
        """Refuse to serve other machines without an explicit token and host names.

        Raises:
            SpecError: naming the variables that are missing.
        """
        if self.is_loopback:
            return
        missing = []
        if self.token is None and not self._token_is_there():
            missing.append("CALIFT_TOKEN (id.secret)")
        if not self.allowed_hosts:
            missing.append("CALIFT_ALLOWED_HOSTS (the names people reach it by)")
        if missing:
            raise SpecError(
                f"host {self.host!r} can be reached from other machines, and that needs "
                f"{' and '.join(missing)}.",
                hint="Set them, or bind to 127.0.0.1.",
            )

    def _token_is_there(self) -> bool:
        """Whether a token was put into a file of its own; one that we make is told to nobody."""
        assert self.token_file is not None
        return self.token_file != self.home / "token" and self.token_file.is_file()

    def admin_token(self) -> str:
        """The admin token: the given one, else the one in `token_file`, made on first use.

        Raises:
            SpecError: a given token has the wrong form.
            StorageError: the file cannot be read or made, or others can read it.
        """
        if self.token is not None:
            return check_token(self.token.get_secret_value(), "CALIFT_TOKEN")
        assert self.token_file is not None
        return read_or_make_token(self.token_file)

    def derived_key(self, purpose: str) -> bytes:
        """A secret of 32 bytes for one purpose; every process with the same admin token has it.

        Raises:
            SpecError, StorageError: as `admin_token`.
        """
        return hmac.digest(self.admin_token().encode(), f"calift.{purpose}".encode(), "sha256")


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        pydantic.ValidationError: naming the variable that is wrong.
    """
    return Settings()


def new_token(prefix: str = "clft") -> str:
    """A fresh token `prefix_id.secret` of 256 random bits."""
    return f"{prefix}_{secrets.token_hex(6)}.{secrets.token_urlsafe(32)}"


def check_token(token: str, name: str) -> str:
    """Return the token when it has the form `id.secret` with a secret worth the name.

    Raises:
        SpecError: it does not.
    """
    token = token.strip()
    head, dot, secret = token.partition(".")
    if not (dot and head and len(secret) >= 16 and token.isascii() and token.isprintable()):
        raise SpecError(
            f"{name} must have the form id.secret with a secret of at least 16 characters.",
            hint="`python -c 'import secrets; print(\"ci.\" + secrets.token_urlsafe(32))'`",
        )
    return token


def read_or_make_token(path: Path) -> str:
    """Read the token file; make it (0600) when it is not there.

    Two processes that start together agree: the file is created exclusively and complete.

    Raises:
        SpecError: the file's content is no token.
        StorageError: the file cannot be read or made, or others can read it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(new_token() + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                with contextlib.suppress(FileExistsError):
                    os.link(fresh, path)  # unlike a rename, this never replaces a winner's file
            finally:
                fresh.unlink(missing_ok=True)
        about = path.stat()
        # A secret that is mounted belongs to somebody else, who has said who may read it.
        mine = os.name == "posix" and about.st_uid == os.geteuid()
        if mine and stat.S_IMODE(about.st_mode) & 0o077:
            raise StorageError(f"others can read the token file {path}.", hint=f"chmod 600 {path}")
        return check_token(path.read_text(encoding="ascii", errors="replace"), str(path))
    except OSError as error:
        raise storage_error(error, path, "read") from error
