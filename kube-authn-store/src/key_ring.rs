//! Seals logins with AES-256-GCM-SIV.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    error::Unspecified,
    rand,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use kube_authn_core::{Error, ErrorKind, KeyId, Result, Sealer, Secret, bytes::Bytes};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// Where the keys of a [`KeyRing`] come from: a configuration, or a key management service.
///
/// A fixed list is a provider of itself.
#[async_trait]
pub trait KeyProvider: fmt::Debug + Send + Sync + 'static {
    /// All keys, 32 bytes each; the first one is the newest and seals.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` if the keys can't be asked for; `ConfigInvalid` if there will never be any.
    async fn keys(&self) -> Result<Vec<(KeyId, Secret)>>;
}

#[async_trait]
impl KeyProvider for Vec<(KeyId, Secret)> {
    async fn keys(&self) -> Result<Vec<(KeyId, Secret)>> {
        Ok(self.clone())
    }
}

/// A ring of keys: the first one seals, every one opens. Clones share the keys.
///
/// Keys are rotated without logging anybody out: put the new key behind the old one everywhere, then in front, then
/// write the rows anew ([`TokenVault::rekey`](kube_authn_core::TokenVault::rekey)), then take the old one out.
///
/// The cipher is AES-256-GCM-SIV (RFC 8452) with a random nonce for each row: should a nonce ever come twice, it shows
/// that two rows are equal and nothing else.
#[derive(Clone)]
pub struct KeyRing {
    keys: Arc<RwLock<Keys>>,
    lost: Arc<[KeyId]>,
}

type Keys = Arc<[(KeyId, LessSafeKey)]>;

impl KeyRing {
    /// A ring of these keys, 32 bytes each; the first one seals.
    ///
    /// # Errors
    /// `ConfigInvalid` if there is none, if two have the same id or the same bytes, or if one has another length or
    /// nothing but zeros.
    pub fn new(keys: Vec<(KeyId, Secret)>) -> Result<Self> {
        if keys.is_empty() {
            return Err(Error::new(
                ErrorKind::ConfigInvalid,
                "no encryption key: make one with `kube-authn keygen` and name it under kubeAuthn.encryption.keys",
            ));
        }
        for (index, (id, key)) in keys.iter().enumerate() {
            if key.len() != KEY_BYTES {
                return Err(unfit(id, "must be 32 bytes long"));
            }
            if *key == Secret::new([0; KEY_BYTES]) {
                return Err(unfit(id, "is all zeros"));
            }
            for (other, other_key) in &keys[..index] {
                if other == id {
                    return Err(unfit(id, "is there twice"));
                }
                if other_key == key {
                    return Err(unfit(id, &format!("is the same as \"{other}\"")));
                }
            }
        }
        let keys: Keys = keys
            .into_iter()
            .map(
                |(id, key)| match UnboundKey::new(&AES_256_GCM_SIV, key.expose()) {
                    Ok(unbound) => Ok((id, LessSafeKey::new(unbound))),
                    Err(Unspecified) => Err(unfit(&id, "is not accepted by the cipher")),
                },
            )
            .collect::<Result<_>>()?;
        Ok(Self {
            keys: Arc::new(RwLock::new(keys)),
            lost: Arc::default(),
        })
    }

    /// Names keys that nobody has any more: whose login one of them sealed, has none. One that is in the ring is not lost.
    pub fn with_lost(mut self, ids: Vec<KeyId>) -> Self {
        self.lost = ids.into();
        self
    }

    /// A ring of the keys that the provider has now.
    ///
    /// # Errors
    /// Those of the provider and of [`KeyRing::new`].
    pub async fn from_provider(provider: &(impl KeyProvider + ?Sized)) -> Result<Self> {
        Self::new(provider.keys().await?)
    }

    /// Takes over the keys of another ring, for this one and all of its clones; says whether anything changed. Which ones are
    /// lost stays as it was.
    ///
    /// # Errors
    /// `ConfigInvalid` if a key has the id of one that is here, and is another: what that one sealed would be lost. This
    /// ring stays as it was.
    pub fn renew(&self, other: &KeyRing) -> Result<bool> {
        let (present, new) = (self.keys(), other.keys());
        for (id, key) in &*new {
            if let Some((_, known)) = present.iter().find(|(known, _)| known == id)
                && fingerprint(known)? != fingerprint(key)?
            {
                return Err(unfit(
                    id,
                    "is another key than before: give the new one an id of its own",
                ));
            }
        }
        let ids = |keys: &Keys| keys.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
        let changed = ids(&present) != ids(&new);
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(changed)
    }

    /// A ring of the keys that are here now, which shares nothing with this one: to put them back.
    pub fn snapshot(&self) -> Self {
        Self {
            keys: Arc::new(RwLock::new(self.keys())),
            lost: Arc::clone(&self.lost),
        }
    }

    /// A ring of keys as they stand in the configuration: base64 of 32 bytes each; the first one seals.
    ///
    /// # Errors
    /// `ConfigInvalid` as [`KeyRing::new`], or if one is not base64.
    pub fn from_base64(keys: &[(KeyId, SecretString)]) -> Result<Self> {
        let keys = keys.iter().map(|(id, text)| {
            let mut key = Zeroizing::new(vec![0; text.expose_secret().len()]);
            let length = STANDARD
                .decode_slice(text.expose_secret().trim(), &mut key)
                .map_err(|_| unfit(id, "must be base64 of 32 bytes"))?;
            Ok((id.clone(), Secret::new(&key[..length])))
        });
        Self::new(keys.collect::<Result<_>>()?)
    }

    /// A new key, 32 bytes from the operating system's random numbers.
    ///
    /// # Errors
    /// `Unexpected` if there are none.
    pub fn random_key() -> Result<Secret> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        rand::fill(&mut *key).map_err(|Unspecified| no_random_numbers())?;
        Ok(Secret::new(*key))
    }

    /// A new key as it stands in the configuration: base64 of 32 bytes.
    ///
    /// # Errors
    /// As [`KeyRing::random_key`].
    pub fn random_key_base64() -> Result<SecretString> {
        Ok(STANDARD.encode(Self::random_key()?.expose()).into())
    }

    /// The ids of all keys; the first one seals.
    pub fn ids(&self) -> Vec<KeyId> {
        self.keys().iter().map(|(id, _)| id.clone()).collect()
    }

    fn keys(&self) -> Keys {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sealer for KeyRing {
    fn seal(&self, bound_to: &[u8], plain: &[u8]) -> Result<(KeyId, Bytes)> {
        let keys = self.keys();
        let Some((id, key)) = keys.first() else {
            return Err(Error::new(ErrorKind::ConfigInvalid, "no encryption key"));
        };
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|Unspecified| no_random_numbers())?;
        let mut sealed = Zeroizing::new(Vec::with_capacity(
            1 + NONCE_LEN + plain.len() + AES_256_GCM_SIV.tag_len(),
        ));
        sealed.push(FORMAT);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let tag = key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(bound_to),
                &mut sealed[1 + NONCE_LEN..],
            )
            .map_err(|Unspecified| {
                Error::new(ErrorKind::Unexpected, "the cipher could not seal the login")
            })?;
        sealed.extend_from_slice(tag.as_ref());
        Ok((id.clone(), Bytes::from(std::mem::take(&mut *sealed))))
    }

    fn open(&self, key_id: &KeyId, bound_to: &[u8], sealed: &[u8]) -> Result<Secret> {
        let keys = self.keys();
        let Some((_, key)) = keys.iter().find(|(id, _)| id == key_id) else {
            return Err(Error::new(
                ErrorKind::RecordDamaged,
                format!(
                    "the stored login is sealed with key \"{key_id}\", which is not in the key ring: \
                     add it to kubeAuthn.encryption.keys"
                ),
            ));
        };
        let damaged = || {
            Error::new(
                ErrorKind::RecordDamaged,
                format!(
                    "the stored login does not open with key \"{key_id}\": \
                     its row was changed outside, or the key is another one of that name"
                ),
            )
        };
        let (&[FORMAT], rest) = sealed.split_first_chunk().ok_or_else(damaged)? else {
            return Err(damaged());
        };
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        let plain = key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(bound_to),
                &mut buffer,
            )
            .map_err(|Unspecified| damaged())?;
        Ok(Secret::new(&*plain))
    }

    fn is_lost(&self, key_id: &KeyId) -> bool {
        self.lost.contains(key_id) && !self.keys().iter().any(|(id, _)| id == key_id)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyRing").field(&self.ids()).finish()
    }
}

/// Equal for equal keys, and of no use to anybody who has it: the tag over nothing, which no row ever has. The cipher
/// allows a nonce to come twice.
fn fingerprint(key: &LessSafeKey) -> Result<Vec<u8>> {
    let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
    key.seal_in_place_separate_tag(nonce, Aad::from(b"kube-authn/key"), &mut [])
        .map(|tag| tag.as_ref().to_vec())
        .map_err(|Unspecified| Error::new(ErrorKind::Unexpected, "the cipher could not tell two keys apart"))
}

fn unfit(id: &KeyId, why: &str) -> Error {
    Error::new(
        ErrorKind::ConfigInvalid,
        format!("encryption key \"{id}\" {why}: make one with `kube-authn keygen`"),
    )
}

fn no_random_numbers() -> Error {
    Error::new(ErrorKind::Unexpected, "the system gave no random numbers")
}

/// AES-256.
const KEY_BYTES: usize = 32;
/// First byte of what is sealed: format, nonce, ciphertext, tag.
const FORMAT: u8 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(keys: &[(&str, u8)]) -> Result<KeyRing> {
        KeyRing::new(
            keys.iter()
                .map(|(id, byte)| (KeyId::new(id).expect("an id"), Secret::new([*byte; KEY_BYTES])))
                .collect(),
        )
    }

    #[test]
    fn what_was_sealed_opens_again() {
        let ring = ring(&[("k1", 1)]).expect("a ring");

        let (id, sealed) = ring.seal(b"row", b"canary").expect("sealed");

        assert_eq!(
            ring.open(&id, b"row", &sealed).expect("open"),
            Secret::new("canary")
        );
        assert!(!sealed.windows(6).any(|window| window == b"canary"));
    }

    /// RFC 8452 appendix C.2, the vector with an eight-byte plaintext and one byte of additional data.
    #[test]
    fn published_vector_opens() {
        let mut key = [0; KEY_BYTES];
        key[0] = 1;
        let ring = KeyRing::new(vec![(KeyId::new("rfc").expect("an id"), Secret::new(key))]).expect("a ring");
        let mut sealed = vec![FORMAT, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        sealed.extend_from_slice(&[
            0x1d, 0xe2, 0x29, 0x67, 0x23, 0x7a, 0x81, 0x32, 0x91, 0x21, 0x3f, 0x26, 0x7e, 0x3b, 0x45, 0x2f,
            0x02, 0xd0, 0x1a, 0xe3, 0x3e, 0x4e, 0xc8, 0x54,
        ]);

        let plain = ring.open(&KeyId::new("rfc").expect("an id"), &[1], &sealed);

        assert_eq!(plain.expect("open"), Secret::new([2, 0, 0, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn row_of_somebody_else_never_opens() {
        let ring = ring(&[("k1", 1), ("k2", 2)]).expect("a ring");
        let (id, sealed) = ring.seal(b"alice", b"token").expect("sealed");

        let moved = ring.open(&id, b"bob", &sealed).expect_err("bound to alice");
        let other_key = ring
            .open(&KeyId::new("k2").expect("an id"), b"alice", &sealed)
            .expect_err("sealed with k1");

        assert_eq!(
            (moved.kind(), other_key.kind()),
            (ErrorKind::RecordDamaged, ErrorKind::RecordDamaged)
        );
    }

    #[test]
    fn first_key_seals_and_every_key_opens() {
        let old = ring(&[("old", 1)]).expect("a ring");
        let both = ring(&[("new", 2), ("old", 1)]).expect("a ring");
        let (old_id, sealed) = old.seal(b"row", b"token").expect("sealed");

        assert_eq!(
            both.open(&old_id, b"row", &sealed).expect("open"),
            Secret::new("token")
        );
        assert_eq!(both.seal(b"row", b"token").expect("sealed").0.as_str(), "new");
    }

    #[test]
    fn unknown_key_is_damage_that_names_the_key() {
        let (id, sealed) = ring(&[("gone", 1)])
            .expect("a ring")
            .seal(b"row", b"token")
            .expect("sealed");

        let error = ring(&[("k1", 2)])
            .expect("a ring")
            .open(&id, b"row", &sealed)
            .expect_err("unknown");

        assert_eq!(error.kind(), ErrorKind::RecordDamaged);
        assert!(error.to_string().contains("\"gone\""), "{error}");
    }

    #[test]
    fn unfit_keys_are_refused() {
        let short = KeyRing::new(vec![(KeyId::new("k").expect("an id"), Secret::new([1; 31]))]);
        let refused = [
            KeyRing::new(Vec::new()),
            ring(&[("k", 1), ("k", 2)]),
            ring(&[("a", 1), ("b", 1)]),
            ring(&[("k", 0)]),
            short,
            KeyRing::from_base64(&[(KeyId::new("k").expect("an id"), "not base64!".to_owned().into())]),
        ];

        for ring in refused {
            assert_eq!(ring.expect_err("refused").kind(), ErrorKind::ConfigInvalid);
        }
    }

    #[test]
    fn generated_key_makes_a_ring() {
        let key = KeyRing::random_key_base64().expect("a key");

        let ring = KeyRing::from_base64(&[(KeyId::new("k").expect("an id"), key)]);

        assert_eq!(ring.expect("a ring").ids().len(), 1);
    }

    #[test]
    fn renewed_ring_seals_with_its_new_key_and_so_do_its_clones() {
        let running = ring(&[("old", 1)]).expect("a ring");
        let of_a_vault = running.clone();
        let (id, sealed) = running.seal(b"row", b"token").expect("sealed");

        let changed = running.renew(&ring(&[("new", 2), ("old", 1)]).expect("a ring"));

        assert!(changed.expect("renewed"));
        assert_eq!(
            of_a_vault.seal(b"row", b"token").expect("sealed").0.as_str(),
            "new"
        );
        assert_eq!(
            of_a_vault.open(&id, b"row", &sealed).expect("open"),
            Secret::new("token")
        );
        let again = running.renew(&ring(&[("new", 2), ("old", 1)]).expect("a ring"));
        assert!(!again.expect("renewed"));
    }

    #[test]
    fn key_never_changes_under_its_id() {
        let running = ring(&[("k1", 1)]).expect("a ring");
        let (id, sealed) = running.seal(b"row", b"token").expect("sealed");

        let refused = running.renew(&ring(&[("k1", 2)]).expect("a ring"));

        assert_eq!(refused.expect_err("another key").kind(), ErrorKind::ConfigInvalid);
        assert!(running.open(&id, b"row", &sealed).is_ok());
    }

    #[test]
    fn key_that_is_found_again_is_not_lost() {
        let id = |id| KeyId::new(id).expect("an id");
        let running = ring(&[("k2", 2)]).expect("a ring").with_lost(vec![id("k1")]);
        assert!(running.is_lost(&id("k1")) && !running.is_lost(&id("k2")) && !running.is_lost(&id("k3")));

        running
            .renew(&ring(&[("k2", 2), ("k1", 1)]).expect("a ring"))
            .expect("renewed");

        assert!(!running.is_lost(&id("k1")));
    }

    #[tokio::test]
    async fn list_of_keys_provides_itself() {
        let keys = vec![(KeyId::new("k1").expect("an id"), Secret::new([1; KEY_BYTES]))];

        let ring = KeyRing::from_provider(&keys).await.expect("a ring");

        assert_eq!(ring.ids(), [KeyId::new("k1").expect("an id")]);
    }

    #[test]
    fn debug_shows_no_key() {
        let text = format!("{:?}", ring(&[("k1", 0x41)]).expect("a ring"));

        assert_eq!(text, "KeyRing([k1])");
    }

    proptest! {
        #[test]
        fn any_bytes_are_damage_and_never_panic(sealed in proptest::collection::vec(any::<u8>(), 0..120)) {
            let ring = ring(&[("k1", 1)]).expect("a ring");

            let error = ring.open(&KeyId::new("k1").expect("an id"), b"row", &sealed).expect_err("damage");

            prop_assert_eq!(error.kind(), ErrorKind::RecordDamaged);
        }

        #[test]
        fn flipped_bit_is_damage(at in 0usize..34, bit in 0u8..8) {
            let ring = ring(&[("k1", 1)]).expect("a ring");
            let (id, sealed) = ring.seal(b"row", b"token").expect("sealed");
            let mut sealed = sealed.to_vec();
            prop_assume!(at < sealed.len());
            sealed[at] ^= 1 << bit;

            prop_assert!(ring.open(&id, b"row", &sealed).is_err());
        }
    }
}
