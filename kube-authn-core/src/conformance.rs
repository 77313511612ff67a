//! The contracts of the family as runnable checks, for implementations inside and outside of it. A check that fails
//! panics and names the line of the contract, as an assertion of a test does.

pub mod provider;
pub mod store;
pub mod store_changes;
pub mod vault;
pub mod vault_claims;
pub mod vault_damage;
pub mod vault_ends;
pub mod vault_keys;
pub mod vault_refresh;

mod provider_fixture;
mod puppet;
mod sample;
mod transcript;
