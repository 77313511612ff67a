//! How long does a request wait for a credential that is already there?
//!
//! DESIGN row 6: `peek` for a hot set of 1,000 users, and at random over 1, 10,000 and 1,000,000 logins.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench: criterion makes the functions"
)]

use std::{hint::black_box, sync::Arc};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kube_authn_benches::{Minting, next_random, percentiles, user};
use kube_authn_core::{CachingProvider, ClusterDetails, CredentialRequest, ProviderRegistry, SystemClock};

fn credential_lookup(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let cluster = ClusterDetails::builder("prod", "https://127.0.0.1")
        .auth_provider("minting")
        .build()
        .expect("a cluster");
    let mut group = criterion.benchmark_group("credential_lookup");
    for logins in [1_usize, 10_000, 1_000_000] {
        let registry = ProviderRegistry::new().with(Minting);
        // Twice as many places as logins: the bound is per shard, and shards fill unevenly.
        let cache =
            CachingProvider::with_clock_and_capacity(registry, Arc::new(SystemClock), 2 * logins.max(1_000));
        let requests: Vec<_> = (0..logins)
            .map(|number| CredentialRequest::new(user(number), cluster.clone()))
            .collect();
        runtime.block_on(async {
            for request in &requests {
                cache.credential(request).await.expect("a credential");
            }
        });
        for (what, span) in [("hot set of 1,000", logins.min(1_000)), ("at random", logins)] {
            let mut random = 1;
            let mut peek = || {
                let request = &requests[next_random(&mut random) % span];
                black_box(cache.peek(request)).expect("warm");
            };
            let (p50, p99) = percentiles(1_000_000, |_| peek());
            println!("{logins} logins, {what}: p50 {p50:?}, p99 {p99:?}");
            group.bench_function(BenchmarkId::new(what, logins), |bencher| bencher.iter(&mut peek));
        }
    }
}

criterion_group!(benches, credential_lookup);
criterion_main!(benches);
