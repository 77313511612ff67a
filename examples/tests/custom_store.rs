//! The example `custom_store`: a store that somebody copies keeps the contracts.

#[allow(dead_code, reason = "a test has a runtime of its own")]
#[path = "../examples/custom_store.rs"]
mod custom_store;

#[tokio::test(flavor = "multi_thread")]
async fn store_of_the_example_keeps_the_contracts_of_stores_and_of_the_vault() {
    custom_store::check().await.expect("a key ring");
}
