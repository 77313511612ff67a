//! `kube-authn keygen`: a new key for the key ring.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::Args;
use kube_authn_core::secrecy::ExposeSecret;
use kube_authn_store::KeyRing;

/// Prints one key, base64 of 32 random bytes, alone on standard output.
#[derive(Debug, Args)]
pub(crate) struct Keygen;

impl Keygen {
    pub(crate) fn run(&self) -> ExitCode {
        let key = match KeyRing::random_key_base64() {
            Ok(key) => key,
            Err(error) => {
                eprintln!("kube-authn: {error}");
                return ExitCode::FAILURE;
            }
        };
        let mut out = std::io::stdout();
        if writeln!(out, "{}", key.expose_secret())
            .and_then(|()| out.flush())
            .is_err()
        {
            return ExitCode::FAILURE;
        }
        if out.is_terminal() {
            eprintln!("{HINT}");
        }
        ExitCode::SUCCESS
    }
}

const HINT: &str = "
Keep it where the service's other secrets are, for example in the variable KUBE_AUTHN_KEY, and name it in the configuration:

kubeAuthn:
  encryption:
    keys: [{ id: k1, key: \"${KUBE_AUTHN_KEY}\" }]

Who loses it loses all logins; who gets it can read them.";
