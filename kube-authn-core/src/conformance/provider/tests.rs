//! Each check is run against a provider that breaks its line: a check that cannot fail is none.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::*;
use crate::{
    EntityRef, ErrorKind, KubernetesAuthProvider, Metadata, Principal, Problem, Result, async_trait,
};

/// What is wrong with the provider.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Defect {
    None,
    Name,
    ScopeMoves,
    OneForAll,
    ValidateNeedsRuntime,
    ProblemMissing,
    MetadataLeaks,
    Expired,
    NoEnd,
    Anonymous,
    Crossed,
    ServesEverybody,
    DropPoisons,
    RefusalEndsLogin,
    RefusedComesAgain,
    ErrorLeaks,
    LogLeaks,
    DebugLeaks,
}

#[derive(Debug)]
struct Defective {
    defect: Defect,
    calls: AtomicUsize,
    permits: Semaphore,
    caller: Mutex<String>,
    ended: AtomicBool,
    kept: Credential,
    #[allow(dead_code, reason = "Debug is what shows it")]
    shown: Option<&'static str>,
}

const CANARY: &str = "canary-4711";

fn name_of(request: &CredentialRequest) -> String {
    request.principal.to_string().replace(' ', "")
}

fn end() -> Timestamp {
    Timestamp::from_second(4_000_000_000).expect("an instant")
}

#[async_trait]
impl KubernetesAuthProvider for Defective {
    fn name(&self) -> &str {
        match self.defect == Defect::Name && self.calls.load(Ordering::SeqCst) > 0 {
            true => "other",
            false => "defective",
        }
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        match self.defect == Defect::ScopeMoves && self.calls.load(Ordering::SeqCst) > 0 {
            true => CredentialScope::Request,
            false => CredentialScope::User,
        }
    }

    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        if self.defect == Defect::ValidateNeedsRuntime {
            tokio::runtime::Handle::current();
        }
        let broken = cluster.auth_metadata().get("broken").is_some();
        match self.defect {
            _ if !broken => Vec::new(),
            Defect::ProblemMissing => vec![Problem::new("a", "wrong")],
            _ => vec![Problem::new("a", "wrong"), Problem::new("b", "wrong too")],
        }
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        match self.defect {
            Defect::MetadataLeaks => Metadata::from([("token".to_owned(), format!("x{CANARY}x"))]),
            _ => Metadata::new(),
        }
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        *self.caller.lock().expect("the lock") = name_of(request);
        let permit = self.permits.acquire().await.expect("never closed");
        if self.defect == Defect::DropPoisons {
            permit.forget();
            tokio::task::yield_now().await;
            self.permits.add_permits(1);
        } else {
            tokio::task::yield_now().await;
            drop(permit);
        }
        if self.defect == Defect::LogLeaks {
            tracing::trace!(token = CANARY, "fetched");
        }
        let known = request.auth.token("defective").is_some() || self.defect == Defect::ServesEverybody;
        if !known || self.ended.load(Ordering::SeqCst) {
            let text = match self.defect {
                Defect::ErrorLeaks => format!("no login, only {CANARY}"),
                _ => "no login".to_owned(),
            };
            return Err(Error::new(ErrorKind::LoginRequired, text));
        }
        let name = match self.defect {
            Defect::OneForAll => "shared".to_owned(),
            Defect::Crossed => self.caller.lock().expect("the lock").clone(),
            _ => name_of(request),
        };
        let credential = Credential::bearer(&Secret::new(name))?;
        Ok(match self.defect {
            Defect::Anonymous => Credential::anonymous().with_expires_at(end()),
            Defect::Expired => credential.with_expires_at(Timestamp::UNIX_EPOCH),
            Defect::NoEnd => credential,
            Defect::RefusedComesAgain => self.kept.clone(),
            _ => credential.with_expires_at(end()),
        })
    }

    async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool {
        if self.defect == Defect::RefusalEndsLogin {
            self.ended.store(true, Ordering::SeqCst);
        }
        true
    }
}

fn fixture(defect: Defect) -> ProviderFixture {
    let cluster = |name: &str, broken: bool| {
        let mut metadata = crate::AuthMetadata::default();
        if broken {
            metadata.insert("broken", "yes");
        }
        ClusterDetails::builder(name, "https://prod.example.com")
            .auth_provider("defective")
            .auth_metadata(metadata)
            .build()
            .expect("a cluster")
    };
    let prod = cluster("prod", false);
    let request = |name: &str| {
        let user = EntityRef::parse(&format!("user:default/{name}")).expect("a reference");
        CredentialRequest::new(Principal::user(user), prod.clone())
    };
    let offering = |name: &str| {
        request(name).with_auth(crate::RequestAuth::new().with_token("defective", Secret::new("offered")))
    };
    let provider = Defective {
        defect,
        calls: AtomicUsize::new(0),
        permits: Semaphore::new(CALLS_AT_ONCE),
        caller: Mutex::default(),
        ended: AtomicBool::new(false),
        kept: Credential::bearer(&Secret::new("user:default/alice"))
            .expect("a credential")
            .with_expires_at(end()),
        shown: (defect == Defect::DebugLeaks).then_some(CANARY),
    };
    ProviderFixture::new(provider, offering("alice"), offering("bob"))
        .with_expires_at(end())
        .refusing(request("carol"), ErrorKind::LoginRequired)
        .with_unworkable(cluster("broken", true), &["b", "a"])
        .with_canary(Secret::new(CANARY))
}

#[tokio::test]
async fn provider_that_keeps_the_contract_passes() {
    all(&fixture(Defect::None)).await;
    all(&fixture(Defect::None).cached()).await;
}

macro_rules! caught {
    ($($test:ident: $check:ident catches $defect:ident, $panic:literal;)*) => {$(
        #[tokio::test(start_paused = true)]
        #[should_panic(expected = $panic)]
        async fn $test() {
            $check(&fixture(Defect::$defect)).await;
        }
    )*};
}

caught! {
    name_that_changes_is_caught: name_never_changes catches Name, "line 1";
    scope_that_moves_is_caught: scope_depends_on_the_cluster_alone catches ScopeMoves, "line 2";
    one_identity_for_all_users_is_caught: credential_serves_nobody_beyond_its_scope catches OneForAll, "line 2";
    validation_over_the_network_is_caught: validate_reports_all_problems_without_a_runtime catches ValidateNeedsRuntime, "line 3";
    second_problem_kept_back_is_caught: validate_reports_all_problems_without_a_runtime catches ProblemMissing, "line 3";
    secret_in_public_metadata_is_caught: public_metadata_holds_no_secret catches MetadataLeaks, "line 4";
    expired_credential_is_caught: credential_is_valid_now_and_states_its_end catches Expired, "line 5";
    unstated_end_is_caught: credential_is_valid_now_and_states_its_end catches NoEnd, "line 5";
    anonymous_by_mistake_is_caught: credential_is_valid_now_and_states_its_end catches Anonymous, "line 5";
    credential_for_somebody_unknown_is_caught: unservable_request_is_refused catches ServesEverybody, "line 5";
    crossed_calls_are_caught: concurrent_calls_never_cross catches Crossed, "line 6";
    lock_lost_with_a_dropped_call_is_caught: dropped_call_harms_no_other catches DropPoisons, "line 6";
    login_ended_by_a_refusal_is_caught: refusal_drops_that_credential_and_no_login catches RefusalEndsLogin, "line 7";
    refused_credential_kept_is_caught: refusal_drops_that_credential_and_no_login catches RefusedComesAgain, "line 7";
    secret_in_an_error_is_caught: nothing_shows_a_secret catches ErrorLeaks, "line 8";
    secret_in_a_log_line_is_caught: nothing_shows_a_secret catches LogLeaks, "line 8";
    secret_in_debug_is_caught: nothing_shows_a_secret catches DebugLeaks, "line 8";
}
