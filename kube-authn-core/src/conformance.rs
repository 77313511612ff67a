//! The contracts of the family as runnable checks, for implementations inside and outside of it. A check that fails
//! panics and names the line of the contract, as an assertion of a test does.

pub mod provider;
mod provider_fixture;
mod transcript;
