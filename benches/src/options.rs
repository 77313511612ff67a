//! What the command line says of a bench that runs subjects in rounds.

use std::{env, time::Duration};

/// `--real`, `--rounds N`, `--millis N`.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether the API server is the test cluster's kube-apiserver.
    pub real: bool,
    /// In how many rounds each subject has its turn.
    pub rounds: usize,
    /// How long a turn is.
    pub span: Duration,
}

impl Options {
    /// The arguments of this process; what they leave out is so many rounds, and turns of so many milliseconds.
    ///
    /// # Panics
    /// If a number is none.
    #[allow(clippy::expect_used, reason = "a bench may panic")]
    pub fn from_arguments(rounds: usize, millis: u64) -> Self {
        let number = |name: &str| {
            env::args()
                .skip_while(|argument| argument != name)
                .nth(1)
                .map(|value| value.parse::<u16>().expect("a number"))
        };
        Self {
            real: env::args().any(|argument| argument == "--real"),
            rounds: number("--rounds").map_or(rounds, usize::from),
            span: Duration::from_millis(number("--millis").map_or(millis, u64::from)),
        }
    }
}
