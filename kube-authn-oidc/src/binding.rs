//! Whose tokens are these? Binding of a verified ID token to the user who brings it.

use kube_authn_core::{
    BindingRule, EntityRef, Error, ErrorKind, IdentityBinding, LoginConfig, Principal, Result, TokenVault,
};

use crate::verify::VerifiedIdToken;

/// The user who may store this login: the principal, if the login's rules say that the tokens are his.
///
/// The first rule that applies decides, in either direction: two verified e-mail addresses that differ are never outvoted by
/// a later rule. If none applies, the answer is no. Rule `first-use` writes a pin into the vault.
///
/// # Errors
/// `Refused`: with code `forbidden` for services and nobody, `guest` for guests, `identity_mismatch` if the tokens belong to
/// somebody else or nothing shows whose they are. Else as [`TokenVault::pin`].
pub async fn bind<'a>(
    login: &LoginConfig,
    principal: &'a Principal,
    token: &VerifiedIdToken,
    vault: &TokenVault,
) -> Result<&'a EntityRef> {
    let Some(user) = principal.entity_ref() else {
        return Err(Error::new(
            ErrorKind::Refused,
            "only users can log in to clusters: services and anonymous callers cannot",
        ));
    };
    if login.guests.contains(user) {
        return Err(Error::new(ErrorKind::Refused, "guests cannot log in to clusters").with_code("guest"));
    }
    let automatic = [BindingRule::Subject, BindingRule::Email, BindingRule::FirstUse];
    let rules = match &login.binding {
        IdentityBinding::Rules(rules) => rules.as_slice(),
        _ => &automatic,
    };
    for rule in rules {
        match apply(rule, principal, user, token) {
            Outcome::Same => return Ok(user),
            Outcome::Different => {
                return Err(mismatch(
                    "these tokens belong to somebody else: log in as yourself",
                ));
            }
            Outcome::FirstUse => {
                vault.pin(user, token.issuer(), token.subject()).await?;
                return Ok(user);
            }
            Outcome::DoesNotApply => {}
        }
    }
    Err(mismatch(
        "nothing shows that these tokens are yours: identityBinding has no rule that applies",
    ))
}

/// What one rule says.
enum Outcome {
    Same,
    Different,
    FirstUse,
    DoesNotApply,
}

impl From<bool> for Outcome {
    fn from(same: bool) -> Self {
        if same { Self::Same } else { Self::Different }
    }
}

fn apply(rule: &BindingRule, principal: &Principal, user: &EntityRef, token: &VerifiedIdToken) -> Outcome {
    match rule {
        BindingRule::Subject => match principal.verified() {
            Some((issuer, subject)) if issuer == token.issuer() => (subject == token.subject()).into(),
            _ => Outcome::DoesNotApply,
        },
        BindingRule::Email => match (principal.email(), token.email()) {
            (Some(callers), Some(tokens)) => callers.as_str().eq_ignore_ascii_case(tokens.as_str()).into(),
            _ => Outcome::DoesNotApply,
        },
        BindingRule::Claim(name) => match token.claim(name) {
            Some(claim) => claim
                .as_str()
                .and_then(|claim| EntityRef::parse(claim).ok())
                .is_some_and(|named| named == *user)
                .into(),
            None => Outcome::DoesNotApply,
        },
        BindingRule::FirstUse => Outcome::FirstUse,
        BindingRule::None => Outcome::Same,
        // A rule of a later version that this one does not know binds nobody.
        _ => Outcome::DoesNotApply,
    }
}

fn mismatch(message: &'static str) -> Error {
    Error::new(ErrorKind::Refused, message).with_code("identity_mismatch")
}
