-- Logins, sealed. Instants are UTC milliseconds since 1970. Names carry the program's prefix: the file may be shared.
CREATE TABLE kube_authn_logins (
    principal        TEXT    NOT NULL,
    issuer           TEXT    NOT NULL,
    client_id        TEXT    NOT NULL,
    login            BLOB    NOT NULL CHECK (length(login) = 16),
    number           INTEGER NOT NULL,
    subject          TEXT    NOT NULL,
    expires_at       INTEGER NOT NULL,
    refreshable      INTEGER NOT NULL CHECK (refreshable IN (0, 1)),
    refreshing_owner BLOB,
    refreshing_until INTEGER,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL,
    key_id           TEXT    NOT NULL,
    sealed           BLOB    NOT NULL,
    PRIMARY KEY (principal, issuer, client_id),
    CHECK ((refreshing_owner IS NULL) = (refreshing_until IS NULL))
) STRICT;

CREATE INDEX kube_authn_logins_by_end ON kube_authn_logins (expires_at);

-- What happened, for every process that has the file open. `number` is NULL when the login ended.
CREATE TABLE kube_authn_events (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    principal TEXT NOT NULL,
    issuer    TEXT NOT NULL,
    client_id TEXT NOT NULL,
    login     BLOB NOT NULL,
    number    INTEGER
) STRICT;

-- Triggers, so that a save stays one statement and nobody can write past them.
CREATE TRIGGER kube_authn_login_saved AFTER INSERT ON kube_authn_logins BEGIN
    INSERT INTO kube_authn_events (principal, issuer, client_id, login, number)
    VALUES (new.principal, new.issuer, new.client_id, new.login, new.number);
END;

-- One trigger for both, since SQLite runs several in no defined order.
CREATE TRIGGER kube_authn_login_changed AFTER UPDATE ON kube_authn_logins BEGIN
    INSERT INTO kube_authn_events (principal, issuer, client_id, login, number)
    SELECT old.principal, old.issuer, old.client_id, old.login, NULL
    WHERE (old.principal, old.issuer, old.client_id, old.login)
        IS NOT (new.principal, new.issuer, new.client_id, new.login);
    INSERT INTO kube_authn_events (principal, issuer, client_id, login, number)
    VALUES (new.principal, new.issuer, new.client_id, new.login, new.number);
END;

CREATE TRIGGER kube_authn_login_ended AFTER DELETE ON kube_authn_logins BEGIN
    INSERT INTO kube_authn_events (principal, issuer, client_id, login, number)
    VALUES (old.principal, old.issuer, old.client_id, old.login, NULL);
END;

-- A reader that is further behind than this has to start over; it sees that the event it read last is gone.
CREATE TRIGGER kube_authn_events_trimmed AFTER INSERT ON kube_authn_events BEGIN
    DELETE FROM kube_authn_events WHERE id <= new.id - 10000;
END;
