//! How long does a request wait for a credential that is already there?
//!
//! Row 6: `peek` for a hot set of 1,000 users, and at random over 1, 10,000 and 1,000,000 logins. Whose request it is was
//! read just before, as in the request path; what is measured is the cache.
#![allow(missing_docs, clippy::expect_used, reason = "a bench may panic")]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion};
use kube_authn_benches::{
    Minting, cache,
    measure::{percentiles, report},
    next_random, user,
};
use kube_authn_core::{CachingProvider, ClusterDetails, CredentialRequest, ProviderRegistry};

fn credential_lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("credential_lookup");
    for logins in [1_usize, 10_000, 1_000_000] {
        let (cache, requests) = filled(logins);
        for (what, span, limit) in [
            ("hot set of 1,000", logins.min(1_000), "p50 ≤ 300 ns"),
            ("at random", logins, "p50 ≤ 1.5 µs, p99 ≤ 3 µs"),
        ] {
            let mut random = 1;
            let mut prepare = || {
                let request = &requests[next_random(&mut random) % span];
                black_box(request.principal.expires_at());
                request
            };
            let peek = |request: &CredentialRequest| black_box(cache.peek(request)).expect("warm");
            let (p50, p99) = percentiles(1_000_000, &mut prepare, |request| drop(peek(request)));
            report(
                6,
                &format!("warm credential, {logins} logins, {what}"),
                &format!("p50 {} ns, p99 {} ns", p50.as_nanos(), p99.as_nanos()),
                limit,
            );
            group.bench_function(BenchmarkId::new(what, logins), |bencher| {
                bencher.iter_batched(&mut prepare, peek, BatchSize::PerIteration);
            });
        }
    }
}

/// A cache with so many users' credentials, and a request of each of them.
fn filled(logins: usize) -> (CachingProvider<ProviderRegistry>, Vec<CredentialRequest>) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let cluster = ClusterDetails::builder("prod", "https://127.0.0.1")
        .auth_provider("minting")
        .build()
        .expect("a cluster");
    let cache = cache(ProviderRegistry::new().with(Minting::default()), logins);
    let requests: Vec<_> = (0..logins)
        .map(|number| CredentialRequest::new(user(number), cluster.clone()))
        .collect();
    runtime.block_on(async {
        for request in &requests {
            cache.credential(request).await.expect("a credential");
        }
    });
    (cache, requests)
}

fn main() {
    let mut criterion = kube_authn_benches::criterion();
    credential_lookup(&mut criterion);
    criterion.final_summary();
}
