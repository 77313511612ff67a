//! How long does a request wait for a credential that is already there?
//!
//! DESIGN row 6: `peek` for a hot set of 1,000 users, and at random over 1, 10,000 and 1,000,000 logins.
#![allow(missing_docs, clippy::expect_used, reason = "a bench may panic")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use kube_authn_benches::{
    Minting, cache,
    measure::{percentiles, report},
    next_random, user,
};
use kube_authn_core::{ClusterDetails, CredentialRequest, ProviderRegistry};

fn credential_lookup(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let cluster = ClusterDetails::builder("prod", "https://127.0.0.1")
        .auth_provider("minting")
        .build()
        .expect("a cluster");
    let mut group = criterion.benchmark_group("credential_lookup");
    for logins in [1_usize, 10_000, 1_000_000] {
        let registry = ProviderRegistry::new().with(Minting::default());
        let cache = cache(registry, logins);
        let requests: Vec<_> = (0..logins)
            .map(|number| CredentialRequest::new(user(number), cluster.clone()))
            .collect();
        runtime.block_on(async {
            for request in &requests {
                cache.credential(request).await.expect("a credential");
            }
        });
        for (what, span, limit) in [
            ("hot set of 1,000", logins.min(1_000), "p50 ≤ 300 ns"),
            ("at random", logins, "p50 ≤ 1.5 µs, p99 ≤ 3 µs"),
        ] {
            let mut random = 1;
            let mut peek = || {
                let request = &requests[next_random(&mut random) % span];
                black_box(cache.peek(request)).expect("warm");
            };
            let (p50, p99) = percentiles(1_000_000, |_| peek());
            report(
                6,
                &format!("warm credential, {logins} logins, {what}"),
                &format!("p50 {p50:?}, p99 {p99:?}"),
                limit,
            );
            group.bench_function(BenchmarkId::new(what, logins), |bencher| bencher.iter(&mut peek));
        }
    }
}

fn main() {
    let mut criterion = kube_authn_benches::criterion();
    credential_lookup(&mut criterion);
    criterion.final_summary();
}
