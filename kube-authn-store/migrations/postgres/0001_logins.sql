-- Logins, sealed. Instants are UTC milliseconds since 1970. Names carry the program's prefix: the schema may be shared.
-- Text is compared byte for byte, whatever the database's collation is.
CREATE TABLE kube_authn_logins (
    principal        text COLLATE "C" NOT NULL,
    issuer           text COLLATE "C" NOT NULL,
    client_id        text COLLATE "C" NOT NULL,
    login            bytea   NOT NULL CHECK (octet_length(login) = 16),
    number           bigint  NOT NULL,
    subject          text COLLATE "C" NOT NULL,
    expires_at       bigint  NOT NULL,
    refreshable      boolean NOT NULL,
    refreshing_owner bytea,
    refreshing_until bigint,
    created_at       bigint  NOT NULL,
    updated_at       bigint  NOT NULL,
    key_id           text COLLATE "C" NOT NULL,
    sealed           bytea   NOT NULL,
    PRIMARY KEY (principal, issuer, client_id),
    CHECK ((refreshing_owner IS NULL) = (refreshing_until IS NULL))
) WITH (toast_tuple_target = 8160);

-- What is sealed cannot be compressed; up to some 7 KB it stays in the row itself, so that a load is one look.
ALTER TABLE kube_authn_logins ALTER COLUMN sealed SET STORAGE EXTERNAL;

CREATE INDEX kube_authn_logins_by_end ON kube_authn_logins (expires_at);

-- Tells every listener, in the order of commits: notifications are queued while a transaction commits, one after the other.
-- So the change itself travels in them, and nobody has to read a table in whose order later commits may come first.
-- An event of a row of ours has at most 5,400 bytes. What is longer than a notification may be was written by somebody
-- else, and must not make the write fail.
CREATE FUNCTION kube_authn_tell(schema name, kind text, key_of kube_authn_logins) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    event text := json_build_array(kind, key_of.principal, key_of.issuer, key_of.client_id,
                                   encode(key_of.login, 'hex'), key_of.number)::text;
BEGIN
    PERFORM pg_notify('kube_authn_' || md5(schema), CASE WHEN octet_length(event) < 8000 THEN event ELSE 'gap' END);
END
$$;

-- A trigger, so that a save stays one statement and nobody can write past it.
CREATE FUNCTION kube_authn_logins_written() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pg_notify('kube_authn_' || md5(TG_TABLE_SCHEMA), 'gap');
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' OR TG_OP = 'UPDATE' AND (OLD.principal, OLD.issuer, OLD.client_id, OLD.login)
        IS DISTINCT FROM (NEW.principal, NEW.issuer, NEW.client_id, NEW.login) THEN
        PERFORM kube_authn_tell(TG_TABLE_SCHEMA, 'ended', OLD);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM kube_authn_tell(TG_TABLE_SCHEMA, 'changed', NEW);
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER kube_authn_logins_written AFTER INSERT OR UPDATE OR DELETE ON kube_authn_logins
    FOR EACH ROW EXECUTE FUNCTION kube_authn_logins_written();
CREATE TRIGGER kube_authn_logins_truncated AFTER TRUNCATE ON kube_authn_logins
    FOR EACH STATEMENT EXECUTE FUNCTION kube_authn_logins_written();
