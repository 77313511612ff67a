//! A connection, and what is asked over it.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use ::redis::{
    Cmd, ErrorKind, FromRedisValue, Pipeline, RedisResult, ScriptInvocation, ServerErrorKind, Value,
    aio::MultiplexedConnection,
};
use tokio::task::AbortHandle;

use super::{error::Failure, url::Address};

/// A connection to a server. Clones share it; it is closed with the last of them.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) commands: MultiplexedConnection,
    pub(super) address: Address,
    driver: Arc<Driver>,
}

/// Tells connections apart, and keeps none of them open.
#[derive(Clone, Debug)]
pub(super) struct ConnectionId(Weak<Driver>);

#[derive(Debug)]
struct Driver(AbortHandle);

/// What is asked.
#[derive(Clone, Copy)]
pub(super) enum Request<'a> {
    /// Changes nothing: it is sent again if it is unknown what became of it.
    Read(&'a Cmd),
    /// As [`Request::Read`].
    ReadScript(&'a ScriptInvocation<'a>),
    /// Is sent again only if it did nothing.
    WriteScript(&'a ScriptInvocation<'a>),
}

impl Connection {
    /// Has the driver run for as long as a clone is there.
    pub(super) fn new<D>(commands: MultiplexedConnection, driver: D, address: Address) -> Self
    where
        D: Future<Output = ()> + Send + 'static,
    {
        Self {
            commands,
            address,
            driver: Arc::new(Driver(tokio::spawn(driver).abort_handle())),
        }
    }

    /// Whether the other side has closed it, so that nothing can have been sent over it any more.
    pub(super) fn is_closed(&self) -> bool {
        self.driver.0.is_finished()
    }

    pub(super) fn id(&self) -> ConnectionId {
        ConnectionId(Arc::downgrade(&self.driver))
    }

    /// What the primary answers. A server may become a replica under a connection that lives on, and goes on to answer,
    /// with rows from before: so it is asked for its role right before each request, in the same round trip.
    pub(super) async fn asked<T: FromRedisValue>(&self, request: Request<'_>) -> Result<T, Failure> {
        let questions = request.after_role();
        let mut commands = self.commands.clone();
        let mut answers: Answers<T> = questions.query_async(&mut commands).await?;
        if let (Err(error), Some(script)) = (&answers.1, request.script())
            && error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
        {
            script.load_async(&mut commands).await?;
            answers = questions.query_async(&mut commands).await?;
        }
        believed(answers, &self.address)
    }
}

/// To `ROLE`, and to the request.
type Answers<T> = (RedisResult<Vec<Value>>, RedisResult<T>);

/// The answer of a primary. No error of a replica is believed either: what is wrong there may never have been wrong at the
/// primary, and a row that is damaged gets deleted.
fn believed<T>((role, answer): Answers<T>, address: &Address) -> Result<T, Failure> {
    match is_primary(&role?) {
        true => Ok(answer?),
        false => Err(Failure::NotPrimary(address.clone())),
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl PartialEq for ConnectionId {
    fn eq(&self, other: &Self) -> bool {
        Weak::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.address).finish()
    }
}

impl<'a> Request<'a> {
    fn after_role(self) -> Pipeline {
        let mut questions = Pipeline::with_capacity(2);
        questions.cmd("ROLE");
        match self {
            Self::Read(command) => questions.add_command(command.clone()),
            Self::ReadScript(script) | Self::WriteScript(script) => questions.invoke_script(script),
        };
        // One refusal does not hide the other answer.
        questions.ignore_errors();
        questions
    }

    fn script(self) -> Option<&'a ScriptInvocation<'a>> {
        match self {
            Self::Read(_) => None,
            Self::ReadScript(script) | Self::WriteScript(script) => Some(script),
        }
    }

    pub(super) fn may_be_repeated_after(self, failure: &Failure) -> bool {
        match self {
            Self::Read(_) | Self::ReadScript(_) => failure.is_elsewhere() || failure.is_broken(),
            Self::WriteScript(_) => failure.is_elsewhere(),
        }
    }
}

/// Whether this answer to `ROLE` is a primary's (<https://redis.io/docs/latest/commands/role/>).
fn is_primary(role: &[Value]) -> bool {
    matches!(role.first(), Some(Value::BulkString(name)) if name == b"master")
}

#[cfg(test)]
mod tests {
    use ::redis::Script;

    use super::*;

    #[test]
    fn role_is_asked_right_before_every_request_and_in_the_same_bytes() {
        let mut read = Cmd::new();
        read.arg("GET").arg("key");
        let script = Script::new("return 1");
        let script = script.key("key");

        let bytes = |request: Request<'_>| {
            let bytes = request.after_role().get_packed_pipeline();
            String::from_utf8(bytes).expect("text")
        };

        assert_eq!(
            bytes(Request::Read(&read)),
            "*1\r\n$4\r\nROLE\r\n*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n"
        );
        for request in [Request::ReadScript(&script), Request::WriteScript(&script)] {
            assert!(bytes(request).starts_with("*1\r\n$4\r\nROLE\r\n*4\r\n$7\r\nEVALSHA\r\n"));
        }
    }

    #[test]
    fn only_a_primary_is_believed_in_its_answers_and_in_its_errors() {
        let address = Address {
            host: "h".to_owned(),
            port: 1,
        };
        let refused = |code: &str| ::redis::make_extension_error(code.to_owned(), None);
        let says = |role: &RedisResult<&str>, answer: Result<u8, &str>| {
            let role = role
                .clone()
                .map(|name| vec![Value::BulkString(name.as_bytes().to_vec())]);
            believed((role, answer.map_err(refused)), &address)
        };
        let code = |answer: Result<u8, Failure>| answer.expect_err("refused").code().map(str::to_owned);

        for answer in [Ok(1), Err("WRONGTYPE"), Err("NOPERM"), Err("LOADING")] {
            let answer = says(&Ok("slave"), answer);
            assert!(matches!(answer, Err(Failure::NotPrimary(_))), "{answer:?}");
        }
        for answer in [Ok(1), Err("WRONGTYPE")] {
            let unknown = Err(refused("NOAUTH"));
            assert_eq!(code(says(&unknown, answer)).as_deref(), Some("NOAUTH"));
        }
        assert_eq!(says(&Ok("master"), Ok(1)).ok(), Some(1));
        let damaged = code(says(&Ok("master"), Err("WRONGTYPE")));
        assert_eq!(damaged.as_deref(), Some("WRONGTYPE"));
    }

    #[test]
    fn only_a_master_is_the_primary() {
        let role = |name: &str| vec![Value::BulkString(name.as_bytes().to_vec()), Value::Int(0)];

        assert!(is_primary(&role("master")));
        assert!(!is_primary(&role("slave")));
        assert!(!is_primary(&role("sentinel")));
        assert!(!is_primary(&[]));
    }
}
