//! First use: the subject of an issuer that a principal brings first is the principal's for good.
//!
//! A pin is two rows, one under the subject that names the principal, one under the principal that names the subject.
//! The second is never rewritten, so whoever is named by the first and has another subject can never be confirmed: only
//! such a first row may be overwritten. Thus no two pins ever share a principal or a subject, whoever races or dies
//! between the two writes. A row whose key is lost says nothing any more, and is written anew like one that is not there.

use jiff::Timestamp;

use super::{ATTEMPTS, TokenVault, contended, noted, refuse_reserved, row::Extra};
use crate::{
    AuditEvent, ClientId, EntityRef, Error, ErrorKind, Expected, Issuer, LoginMetadata, Result, Revision,
    Subject, TokenKey, TokenSet,
};

impl TokenVault {
    /// Pins this subject of the issuer to the principal and the principal to the subject, for good, or confirms that
    /// they are. Pins survive logout and purge. Emits [`AuditEvent::IdentityPinned`] for a new one.
    ///
    /// # Errors
    /// `Refused` with code `identity_mismatch` if either is pinned to another. Else as [`TokenVault::load`].
    pub async fn pin(&self, principal: &EntityRef, issuer: &Issuer, subject: &Subject) -> Result<()> {
        refuse_reserved(principal)?;
        let of_principal = pin_key(OF_PRINCIPAL, issuer, principal.as_str())?;
        let of_subject = pin_key(OF_SUBJECT, issuer, subject.as_str())?;
        let owner = Subject::new(principal.as_str())?;
        for _ in 0..ATTEMPTS {
            let [of_principal_was, of_subject_was] = self
                .checked(principal, [&of_principal, &of_subject], subject)
                .await?;
            if let Some(expected) = of_subject_was
                && !self.save_pin(&of_subject, &owner, expected).await?
            {
                continue;
            }
            let Some(expected) = of_principal_was else {
                return Ok(());
            };
            if self.save_pin(&of_principal, subject, expected).await? {
                AuditEvent::IdentityPinned {
                    principal,
                    issuer,
                    subject,
                }
                .emit();
                return Ok(());
            }
        }
        Err(contended("pin the identity"))
    }

    /// Refuses as [`TokenVault::pin`] would, and pins nothing.
    ///
    /// # Errors
    /// The same.
    pub async fn refuse_pinned_to_another(
        &self,
        principal: &EntityRef,
        issuer: &Issuer,
        subject: &Subject,
    ) -> Result<()> {
        refuse_reserved(principal)?;
        let of_principal = pin_key(OF_PRINCIPAL, issuer, principal.as_str())?;
        let of_subject = pin_key(OF_SUBJECT, issuer, subject.as_str())?;
        self.checked(principal, [&of_principal, &of_subject], subject)
            .await
            .map(drop)
    }

    /// For each of the two rows what to expect where it has to be written; `None` if it names the other one already.
    async fn checked(
        &self,
        principal: &EntityRef,
        [of_principal, of_subject]: [&TokenKey; 2],
        subject: &Subject,
    ) -> Result<[Option<Expected>; 2]> {
        let of_principal = match self.pinned(of_principal).await? {
            (_, Some(pinned)) if pinned != *subject => return Err(mismatch()),
            (_, Some(_)) => None,
            (expected, None) => Some(expected),
        };
        let of_subject = match self.pinned(of_subject).await? {
            (_, Some(pinned)) if pinned.as_str() == principal.as_str() => None,
            (expected, Some(pinned)) => {
                self.refuse_unless_void(&of_subject.issuer, &pinned, subject)
                    .await?;
                Some(expected)
            }
            (expected, None) => Some(expected),
        };
        Ok([of_principal, of_subject])
    }

    /// The subject is claimed by this owner: refuses, unless the owner is pinned to another subject for good.
    async fn refuse_unless_void(&self, issuer: &Issuer, owner: &Subject, subject: &Subject) -> Result<()> {
        let of_owner = pin_key(OF_PRINCIPAL, issuer, owner.as_str())?;
        match self.pinned(&of_owner).await? {
            (_, Some(pinned)) if pinned != *subject => Ok(()),
            _ => Err(mismatch()),
        }
    }

    /// What stands there, and whom it names, if that can be told.
    pub(super) async fn pinned(&self, key: &TokenKey) -> Result<(Expected, Option<Subject>)> {
        let record = self.0.store.load(key).await.map_err(|error| noted(key, error))?;
        let Some(record) = record else {
            return Ok((Expected::Absent, None));
        };
        let expected = Expected::At(record.revision);
        if self.is_lost(&record) {
            return Ok((expected, None));
        }
        self.open(key, &record)?;
        Ok((expected, Some(record.metadata.subject)))
    }

    /// Writes one row of a pin and says whether what stood there was as expected.
    pub(super) async fn save_pin(&self, key: &TokenKey, names: &Subject, expected: Expected) -> Result<bool> {
        let metadata = LoginMetadata::new(names.clone(), Timestamp::MAX, false, self.0.clock.now());
        let revision = Revision::first()?;
        let record = self.seal(key, revision, metadata, &TokenSet::new(), &Extra::default())?;
        match self.0.store.save(key, &record, expected).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Behind which key a scan for logins goes on after this row. All rows of our kind stand together: none is a login, and
/// there may be several for each user that there ever was.
pub(super) fn passed(last: &TokenKey) -> Result<TokenKey> {
    match last.principal.kind() {
        KIND => pin_key(BEHIND, &last.issuer, last.client_id.as_str()),
        _ => Ok(last.clone()),
    }
}

/// Entity references and subjects are both short enough to stand where a client identifier stands.
pub(super) fn pin_key(reference: &str, issuer: &Issuer, name: &str) -> Result<TokenKey> {
    Ok(TokenKey {
        principal: EntityRef::parse(reference)?,
        issuer: issuer.clone(),
        client_id: ClientId::new(name)?,
    })
}

fn mismatch() -> Error {
    Error::new(
        ErrorKind::Refused,
        "the tokens are of an identity that is not this user's: log in to the issuer as yourself",
    )
    .with_code("identity_mismatch")
}

/// No user's entity reference may have this kind.
pub(super) const KIND: &str = "kube-authn-pin";
const OF_PRINCIPAL: &str = "kube-authn-pin:first-use/principal";
const OF_SUBJECT: &str = "kube-authn-pin:first-use/subject";
/// Of another meaning, kept in the same way.
pub(super) const TAKEN_OVER: &str = "kube-authn-pin:import/taken-over";
/// Of no row, and greater than the others.
const BEHIND: &str = "kube-authn-pin:z/z";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scan_that_passes_pins_leaves_none_behind_and_no_login_out() {
        let issuer = Issuer::new("https://i/").expect("an issuer");
        let key = |reference: &str| pin_key(reference, &issuer, "a").expect("a key");

        for pin in [OF_PRINCIPAL, OF_SUBJECT, TAKEN_OVER] {
            let passed = passed(&key(pin)).expect("a key");
            for pin in [OF_PRINCIPAL, OF_SUBJECT, TAKEN_OVER] {
                assert!(key(pin) < passed, "{pin}");
            }
            for login in ["kube-authn-pina:a/a", "kube-authn-pio:a/a", "user:default/a"] {
                assert!(passed < key(login), "{login}");
            }
        }
        for login in ["component:a/a", "kube-authn-pi:z/z", "user:default/a"] {
            assert_eq!(passed(&key(login)).expect("a key"), key(login));
        }
    }
}
