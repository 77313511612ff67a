#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod caching;
mod key_ring;
#[cfg(feature = "memory")]
mod memory;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod openportal;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod row;
#[cfg(feature = "sqlite")]
mod sqlite;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use sqlx;

pub use self::caching::CachingTokenStore;
pub use self::key_ring::{KeyProvider, KeyRing};
#[cfg(feature = "memory")]
pub use self::memory::MemoryTokenStore;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::openportal::{OpenportalTable, PlainLogin};
#[cfg(feature = "postgres")]
pub use self::postgres::PostgresTokenStore;
#[cfg(feature = "redis")]
pub use self::redis::{RedisOptions, RedisTokenStore};
#[cfg(feature = "sqlite")]
pub use self::sqlite::{BUSY_TIMEOUT, SqliteTokenStore};
