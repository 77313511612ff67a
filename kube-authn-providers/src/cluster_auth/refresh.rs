//! The refresh of a login: when it is due, and how it happens once, whoever asks and whoever stops waiting.
//!
//! ```text
//! in this process    one flight for each login, a task of its own
//! over all           a claim in the row · the issuer · the new refresh token saved · the ID token verified · the set saved
//! ```

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kube_authn_core::{
    Claim, Error, ErrorKind, Login, LoginConfig, LoginId, Result, TokenKey, refresh_margin,
};
use kube_authn_oidc::LoginVerifier;
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, timeout},
};

use super::{
    ClusterAuthProvider,
    exchange::FailedExchanges,
    expired,
    flight::{Flight, LOOK_AGAIN, Landing, UnderWay},
    no_login,
    spend::Spending,
    usable_token,
};

/// What is being refreshed in this process, and what failed a moment ago.
pub(super) struct Refreshes {
    /// The name of this process in refresh marks.
    owner: LoginId,
    issuers: Vec<Refresher>,
    flights: Mutex<HashMap<TokenKey, Flight>>,
    pub(super) under_way: watch::Sender<usize>,
    pub(super) exchanges: FailedExchanges,
}

/// Where logins of one issuer and client are refreshed.
#[derive(Clone)]
pub(super) struct Refresher {
    pub(super) verifier: LoginVerifier,
    calls: Arc<Semaphore>,
    /// For refreshes because an API server refused a token.
    pub(super) forced: Arc<Semaphore>,
}

impl Refreshes {
    pub(super) fn new(logins: impl IntoIterator<Item = LoginVerifier>) -> Result<Self> {
        let refresher = |verifier| Refresher {
            verifier,
            calls: Arc::new(Semaphore::new(CALLS_PER_ISSUER)),
            forced: Arc::new(Semaphore::new(FORCED_PER_ISSUER)),
        };
        Ok(Self {
            owner: LoginId::random()?,
            issuers: logins.into_iter().map(refresher).collect(),
            flights: Mutex::default(),
            under_way: watch::Sender::new(0),
            exchanges: FailedExchanges::default(),
        })
    }

    pub(super) fn refresher(&self, config: &LoginConfig) -> Option<&Refresher> {
        self.issuers
            .iter()
            .find(|refresher| refresher.verifier.login().shares_logins_with(config))
    }

    pub(super) async fn settled(&self) {
        // The sender is ours: it is not gone.
        let _ = self.under_way.subscribe().wait_for(|flights| *flights == 0).await;
    }

    /// When the login should be refreshed: a fifth of its life before its end, at least a minute ([`refresh_margin`]), and up
    /// to a quarter of that earlier. How much earlier differs from login to login and from process to process, so that logins
    /// made together are not refreshed together, and most replicas find it done. A short life is at least half used up.
    fn due_at(&self, config: &LoginConfig, login: &Login) -> Option<Timestamp> {
        let end = config.token_for_cluster(&login.tokens)?.expires_at;
        let begin = login.issued_at().unwrap_or(login.metadata.updated_at);
        let life = Duration::try_from(end.duration_since(begin)).unwrap_or_default();
        let spread = u32::from(login.revision.login.as_bytes()[0] ^ self.owner.as_bytes()[0]);
        let margin = refresh_margin(life);
        let margin = (margin + margin / 4 * spread / 255).min(life / 2);
        end.checked_sub(SignedDuration::try_from(margin).ok()?).ok()
    }

    /// How long nobody asks the issuer after this failure.
    pub(super) fn pause(&self, error: &Error, failures: u32) -> Duration {
        let first = match error.kind() {
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::RateLimited | ErrorKind::Conflict => {
                FIRST_PAUSE
            }
            _ => FIRST_PAUSE_IF_SOMEBODY_MUST_ACT,
        };
        let pause = self.longer(first, failures);
        pause.max(error.retry_after().unwrap_or_default())
    }

    /// Longer after each failure in a row, and not equally long in all processes.
    fn longer(&self, first: Duration, failures: u32) -> Duration {
        let pause = first.saturating_mul(1 << failures.min(8)).min(LONGEST_PAUSE);
        pause + pause / 2 * u32::from(self.owner.as_bytes()[1]) / 255
    }

    fn land(
        &self,
        key: &TokenKey,
        landed: &watch::Sender<Option<Landing>>,
        outcome: Result<Login>,
        failures: u32,
        is_new: impl Fn(&Login) -> bool,
    ) {
        let is_vain = outcome.as_ref().is_ok_and(|login| !is_new(login));
        let pause = match &outcome {
            Ok(_) if !is_vain => Duration::ZERO,
            Ok(_) => {
                tracing::warn!(issuer = %key.issuer, "a login ends no later than before its refresh");
                self.longer(FIRST_PAUSE_IF_SOMEBODY_MUST_ACT, failures)
            }
            Err(error) => {
                tracing::warn!(issuer = %key.issuer, %error, "a login was not refreshed");
                self.pause(error, failures)
            }
        };
        let landing = Landing {
            outcome: outcome.map_err(|error| match error.is_retryable() {
                true => error.with_retry_after(pause),
                false => error,
            }),
            is_vain,
            failures: failures.saturating_add(1),
            again_at: Instant::now() + pause,
        };
        landed.send_replace(Some(landing.clone()));
        let mut flights = self.flights();
        match flights.get_mut(key) {
            Some(flight) if is_vain => *flight = flight.remembered(landing),
            Some(flight) if !flight.counts(true) => drop(flights.remove(key)),
            _ => {}
        }
    }

    /// What is under way for this login, or came of it.
    pub(super) fn known(&self, login: &Login) -> Option<Flight> {
        known_of(&self.flights(), login).cloned()
    }

    fn flights(&self) -> std::sync::MutexGuard<'_, HashMap<TokenKey, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClusterAuthProvider {
    /// The login as it can be used now, and when to ask again. If a refresh is due, it begins; only who has no usable token
    /// waits for it.
    pub(super) async fn up_to_date(
        &self,
        config: &LoginConfig,
        login: Login,
    ) -> Result<(Login, Option<Timestamp>)> {
        let Some((refreshes, refresher)) = self.refresher(config, &login) else {
            return Ok((login, None));
        };
        let now = self.clock.now();
        let usable = usable_token(&login, config, now).is_some();
        let due_at = refreshes.due_at(config, &login);
        if usable && due_at.is_none_or(|due_at| now < due_at) {
            return Ok((login, due_at));
        }
        let flight = self.flight(refreshes, refresher, &login, usable);
        if usable {
            let ask_again = now.checked_add(flight.pause()).unwrap_or(now);
            return Ok((login, Some(ask_again)));
        }
        let refreshed = flight.landed().await?;
        let due_at = refreshes
            .due_at(config, &refreshed)
            .filter(|_| refreshed.metadata.refreshable);
        Ok((refreshed, due_at))
    }

    /// Where this login is refreshed, if it can be.
    pub(super) fn refresher(
        &self,
        config: &LoginConfig,
        login: &Login,
    ) -> Option<(&Arc<Refreshes>, &Refresher)> {
        let refreshes = self.refreshes.as_ref().filter(|_| login.metadata.refreshable)?;
        Some((refreshes, refreshes.refresher(config)?))
    }

    /// The flight under way for this login, a failure that is still remembered, or a flight that begins now.
    pub(super) fn flight(
        &self,
        refreshes: &Arc<Refreshes>,
        refresher: &Refresher,
        login: &Login,
        usable: bool,
    ) -> Flight {
        let mut flights = refreshes.flights();
        let known = known_of(&flights, login);
        if let Some(flight) = known.filter(|flight| flight.counts(usable)) {
            return flight.clone();
        }
        let failures = known
            .and_then(Flight::landing)
            .map_or(0, |landing| landing.failures);
        if flights.len() >= REMEMBERED {
            flights.retain(|_, flight| flight.counts(true));
        }
        let (landed, landing) = watch::channel(None);
        let flight = Flight {
            login: login.revision.login,
            landing,
        };
        flights.insert(login.key.clone(), flight.clone());
        drop(flights);

        let under_way = UnderWay::new(refreshes);
        let (provider, refresher, login) = (self.clone(), refresher.clone(), login.clone());
        tokio::spawn(async move {
            let refreshes = &under_way.0;
            let outcome = provider.refresh(refreshes, &refresher, login.clone()).await;
            let config = refresher.verifier.login();
            let end = |login: &Login| {
                config
                    .token_for_cluster(&login.tokens)
                    .map(|token| token.expires_at)
            };
            refreshes.land(&login.key, &landed, outcome, failures, |refreshed| {
                end(refreshed) != end(&login)
            });
        });
        flight
    }

    /// The login with new tokens, whoever got them.
    async fn refresh(&self, refreshes: &Refreshes, refresher: &Refresher, read: Login) -> Result<Login> {
        let config = refresher.verifier.login();
        let patience = refresher
            .verifier
            .token_client(&read.key.client_id)
            .longest_call()
            * 2;
        // Before the claim, which lasts as long as the call: an issuer that is down costs no claim.
        refresher.verifier.verifier().issuer().metadata().await?;
        let give_up = Instant::now() + patience;
        let (mut login, mut waited) = (read.clone(), false);
        while Instant::now() < give_up {
            match self.claim_and_spend(refreshes, refresher, &login).await? {
                Claim::Ours(refreshed) => return Ok(refreshed),
                Claim::Running { until } => {
                    waited = true;
                    self.wait_for_another(&login, until).await?;
                }
                Claim::Done(present) => {
                    let token = config.token_for_cluster(&present.tokens);
                    if token != config.token_for_cluster(&read.tokens) || !present.metadata.refreshable {
                        return Ok(present);
                    }
                    // Somebody has tried meanwhile, and it did not work.
                    if waited || present.metadata.updated_at != login.metadata.updated_at {
                        break;
                    }
                    // Only rewritten, for example with another key.
                    login = present;
                }
                Claim::Impossible(_) => return Err(expired()),
                Claim::Ended => return Err(no_login()),
                _ => break,
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the login could not be refreshed just now: try again",
        ))
    }

    /// Claims the refresh and, if it is ours, gives the login that came of it.
    async fn claim_and_spend(
        &self,
        refreshes: &Refreshes,
        refresher: &Refresher,
        login: &Login,
    ) -> Result<Claim> {
        let client = refresher.verifier.token_client(&login.key.client_id);
        let longest = client.longest_call();
        // A place in the queue comes before the claim, too.
        let _call = refresher.call(longest).await?;
        let deadline = Instant::now() + longest;
        let until = SignedDuration::try_from(longest)
            .ok()
            .and_then(|longest| self.clock.now().checked_add(longest).ok())
            .unwrap_or(Timestamp::MAX);
        let claim = self.vault.claim_refresh(login, refreshes.owner, until).await?;
        let Claim::Ours(claimed) = claim else {
            return Ok(claim);
        };
        let spending = Spending {
            vault: &self.vault,
            verifier: &refresher.verifier,
            client: &client,
            deadline,
        };
        let refreshed = spending.spend(claimed).await?;
        match usable_token(&refreshed, refresher.verifier.login(), self.clock.now()) {
            None if refreshed.metadata.refreshable => Err(too_short(&login.key)),
            _ => Ok(Claim::Ours(refreshed)),
        }
    }

    /// Waits until who is at it has done something, or must be taken for dead.
    async fn wait_for_another(&self, login: &Login, until: Timestamp) -> Result<()> {
        let present = self.vault.load(&login.key).await?;
        if let Some(present) = present.filter(|present| present.metadata.refreshing.is_some()) {
            let left = Duration::try_from(until.duration_since(self.clock.now())).unwrap_or_default();
            // An event may be lost, and the mark goes stale without one.
            self.vault
                .changed(&present, left.clamp(Duration::from_millis(10), LOOK_AGAIN))
                .await;
        }
        Ok(())
    }
}

impl Refresher {
    /// A place among the calls to the issuer.
    pub(super) async fn call(&self, patience: Duration) -> Result<SemaphorePermit<'_>> {
        match timeout(patience, self.calls.acquire()).await {
            Ok(Ok(call)) => Ok(call),
            _ => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "too many calls to issuer {} are under way: try again",
                    self.verifier.login().issuer
                ),
            )),
        }
    }
}

/// A flight of an earlier login under this key counts for nothing.
fn known_of<'a>(flights: &'a HashMap<TokenKey, Flight>, login: &Login) -> Option<&'a Flight> {
    let known = flights.get(&login.key);
    known.filter(|flight| flight.login == login.revision.login)
}

fn too_short(key: &TokenKey) -> Error {
    Error::new(
        ErrorKind::Unexpected,
        format!(
            "the tokens of issuer {} end within half a minute: let them live longer",
            key.issuer
        ),
    )
}

impl fmt::Debug for Refreshes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refreshes")
            .field("under_way", &*self.under_way.borrow())
            .finish_non_exhaustive()
    }
}

/// At one issuer and time: thousands of logins that end together become a queue and not a storm.
const CALLS_PER_ISSUER: usize = 32;
/// Failures remembered at least; more are kept only while they count.
pub(super) const REMEMBERED: usize = 1_024;
/// Of [`CALLS_PER_ISSUER`]: a cluster that refuses all of its users keeps nobody else's refresh waiting.
const FORCED_PER_ISSUER: usize = 4;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Tokens of somebody else, a client that the issuer does not know: another try in a second will not mend that.
const FIRST_PAUSE_IF_SOMEBODY_MUST_ACT: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
