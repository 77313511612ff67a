#![doc = include_str!("../README.md")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "only tests use it, and a server that does not start fails its test"
)]

mod keeper;
mod packages;
mod pgbouncer;
mod postgres;
mod redis;

pub use self::{
    keeper::{Keeper, Signal, free_port},
    packages::packages,
    pgbouncer::PgBouncer,
    postgres::{Postgres, Settings},
    redis::{COMMANDS, Cluster, Redis, Sentinels},
};
