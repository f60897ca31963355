-- Times are microseconds since 1970 UTC (integers compare exactly); lists and maps are JSON text.
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE roots (
    fingerprint TEXT PRIMARY KEY, certificate_pem TEXT NOT NULL, created INTEGER NOT NULL, active INTEGER NOT NULL
);

CREATE TABLE tokens (
    id TEXT PRIMARY KEY, secret_sha256 TEXT NOT NULL, namespace TEXT NOT NULL, service_account TEXT NOT NULL,
    created INTEGER NOT NULL, expires INTEGER NOT NULL, uses INTEGER NOT NULL, host TEXT NOT NULL, cidrs TEXT NOT NULL,
    services TEXT, replace_host INTEGER NOT NULL, revoked INTEGER
);

CREATE TABLE token_uses (
    token_id TEXT NOT NULL, host_key_sha256 TEXT NOT NULL, host_name TEXT NOT NULL, at INTEGER NOT NULL,
    PRIMARY KEY (token_id, host_key_sha256)
);

CREATE TABLE hosts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, namespace TEXT NOT NULL, service_account TEXT NOT NULL,
    host_key_pem TEXT NOT NULL, host_key_sha256 TEXT NOT NULL, created INTEGER NOT NULL, last_seen INTEGER NOT NULL,
    status TEXT NOT NULL, services TEXT, addresses TEXT NOT NULL, boot_id TEXT NOT NULL, agent_version TEXT NOT NULL,
    announcement BLOB NOT NULL
);
CREATE UNIQUE INDEX hosts_active_name ON hosts (name) WHERE status = 'active';

CREATE TABLE certificates (serial TEXT PRIMARY KEY, host_id INTEGER NOT NULL, not_after INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX certificates_not_after ON certificates (not_after);

CREATE TABLE services (
    host TEXT PRIMARY KEY, virtual_index INTEGER NOT NULL UNIQUE, namespace TEXT NOT NULL, service_account TEXT NOT NULL,
    last_used INTEGER NOT NULL
);

CREATE TABLE resources (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, api_version TEXT NOT NULL, spec TEXT NOT NULL,
    labels TEXT NOT NULL, version INTEGER NOT NULL, created INTEGER NOT NULL, changed INTEGER NOT NULL,
    PRIMARY KEY (kind, namespace, name)
);

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, action TEXT NOT NULL, outcome TEXT NOT NULL,
    subject TEXT NOT NULL, source TEXT NOT NULL, detail TEXT NOT NULL
);
