//! Whose login was taken over from elsewhere, so that taking over again brings nobody's login back.

use super::{
    TokenVault,
    pin::{TAKEN_OVER, pin_key},
    refuse_reserved,
};
use crate::{EntityRef, Expected, Issuer, Result, Subject};

impl TokenVault {
    /// Notes for good that this user had her chance: a login of hers at the issuer is about to be taken over from elsewhere,
    /// or stands here already. Such notes survive logout and purge, as pins do. Noted after the login, one that is stopped
    /// in between would be taken over again once its user has logged out.
    ///
    /// # Errors
    /// As [`TokenVault::load`].
    pub async fn note_taken_over(&self, principal: &EntityRef, issuer: &Issuer) -> Result<()> {
        refuse_reserved(principal)?;
        let key = pin_key(TAKEN_OVER, issuer, principal.as_str())?;
        let name = Subject::new(principal.as_str())?;
        // One that is there already says the same.
        self.save_pin(&key, &name, Expected::Absent).await.map(drop)
    }

    /// Whether that was noted of this user and issuer. A note whose key is lost says so too: it is there.
    ///
    /// # Errors
    /// As [`TokenVault::load`].
    pub async fn was_taken_over(&self, principal: &EntityRef, issuer: &Issuer) -> Result<bool> {
        refuse_reserved(principal)?;
        let key = pin_key(TAKEN_OVER, issuer, principal.as_str())?;
        let (stands, _) = self.pinned(&key).await?;
        Ok(stands != Expected::Absent)
    }
}
