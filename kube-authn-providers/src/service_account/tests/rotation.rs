//! The kubelet replaces the token while it is in use.

use super::*;

#[tokio::test]
async fn rotated_token_is_sent_within_a_minute() {
    let mount = Mount::with("first");
    let (strategy, clock) = mount.strategy();
    let cache = CachingProvider::with_clock_and_capacity(strategy, Arc::new(clock.clone()), 100);
    let request = asked();
    let sent_now = async || sent(&cache.credential(&request).await.expect("a credential"));
    assert_eq!(sent_now().await, Secret::new("first"));

    mount.rotate("second");
    clock.advance_seconds(49);
    assert_eq!(sent_now().await, Secret::new("first"), "still good, not yet due");
    clock.advance_seconds(1);

    let mut tries = 0;
    while sent_now().await != Secret::new("second") {
        tries += 1;
        assert!(tries < 100_000, "the file is never read again");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn stated_end_is_the_tokens_own() {
    let mount = Mount::with(jwt("x", NOW + 3600).expose());
    let (strategy, _) = mount.strategy();

    let credential = strategy.credential(&asked()).await.expect("a credential");

    assert_eq!(
        (credential.expires_at(), credential.refresh_at()),
        (Some(at(NOW + 3600)), Some(at(NOW + 50)))
    );
}

#[tokio::test]
async fn same_token_read_again_is_the_same_credential() {
    let mount = Mount::with("first");
    let (strategy, _) = mount.strategy();
    let generation = async || {
        strategy
            .credential(&asked())
            .await
            .expect("a credential")
            .generation()
    };
    let first = generation().await;

    mount.rotate("first\n");
    assert_eq!(generation().await, first);
    mount.rotate("second");
    assert_ne!(generation().await, first);
}

#[tokio::test]
async fn last_good_token_is_kept_until_its_end_whatever_becomes_of_the_file() {
    let token = jwt("x", NOW + 600);
    let failures: [fn(&Mount); 6] = [
        |mount| mount.rotate(""),
        |mount| mount.rotate("\r\n"),
        |mount| mount.rotate("two words"),
        |mount| mount.rotate(vec![b'x'; 64 * 1024 + 1]),
        |mount| fs::remove_file(mount.path().join("..data")).expect("removed"),
        |mount| {
            fs::remove_file(mount.token()).expect("removed");
            fs::create_dir(mount.token()).expect("a folder");
        },
    ];
    for (number, fail) in failures.into_iter().enumerate() {
        let mount = Mount::with(token.expose());
        let (strategy, clock) = mount.strategy();
        sent_by(&strategy).await;

        fail(&mount);

        assert_eq!(sent_by(&strategy).await, token, "failure {number}");
        clock.advance_seconds(569);
        assert_eq!(sent_by(&strategy).await, token, "failure {number}");
        clock.advance_seconds(1);
        let (kind, text) = refusal(&strategy, &asked()).await;
        assert_ne!(kind, ErrorKind::TokenExpired, "failure {number}: {text}");
    }
}

#[tokio::test]
async fn token_that_was_put_back_expired_does_not_replace_a_good_one() {
    let good = jwt("x", NOW + 600);
    let mount = Mount::with(good.expose());
    let (strategy, _) = mount.strategy();
    sent_by(&strategy).await;

    mount.rotate(jwt("x", NOW - 600).expose());

    assert_eq!(sent_by(&strategy).await, good);
}

#[tokio::test]
async fn refused_token_is_read_again_and_another_try_is_worth_it_only_for_another_token() {
    let mount = Mount::with("first");
    let (strategy, _) = mount.strategy();
    let first = strategy.credential(&asked()).await.expect("a credential");

    assert!(
        !strategy.invalidate(&asked(), &first).await,
        "the file holds the refused one"
    );
    mount.rotate("second");
    assert!(strategy.invalidate(&asked(), &first).await);

    let second = strategy.credential(&asked()).await.expect("a credential");
    assert_eq!(sent(&second), Secret::new("second"));
    assert_ne!(second.generation(), first.generation());
}

#[tokio::test]
async fn refused_token_is_no_last_good_one() {
    let mount = Mount::with("first");
    let (strategy, _) = mount.strategy();
    let first = strategy.credential(&asked()).await.expect("a credential");

    mount.rotate("");
    assert!(!strategy.invalidate(&asked(), &first).await);
    assert_eq!(refusal(&strategy, &asked()).await.0, ErrorKind::Unavailable);

    mount.rotate("first");
    assert_eq!(
        sent_by(&strategy).await,
        Secret::new("first"),
        "the file vouches for it again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rotation_under_load_never_tears_a_token_nor_fails_a_call() {
    let token = |version: u32| Secret::new(format!("token-{version}-").repeat(200));
    let mount = Mount::with(token(0).expose());
    let (strategy, _) = mount.strategy();
    sent_by(&strategy).await;
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (strategy, stop) = (strategy.clone(), stop.clone());
            tokio::spawn(async move {
                let mut seen = 0;
                while !stop.load(Ordering::Relaxed) {
                    let sent = sent_by(&strategy).await;
                    let text = sent.expose_str().expect("text").to_owned();
                    let version: u32 = text
                        .split('-')
                        .nth(1)
                        .expect("a version")
                        .parse()
                        .expect("a number");
                    assert_eq!(text, format!("token-{version}-").repeat(200), "torn");
                    assert!(version >= seen, "went back from {seen} to {version}");
                    seen = version;
                }
            })
        })
        .collect();

    for version in 1..=300 {
        mount.rotate(token(version).expose());
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);

    for reader in readers {
        reader.await.expect("no reader failed");
    }
    assert_eq!(sent_by(&strategy).await, token(300));
}
