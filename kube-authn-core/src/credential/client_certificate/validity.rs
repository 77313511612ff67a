//! When a certificate ends: the one field of X.509 that is not left to the TLS library, which does not show it.

use jiff::{Timestamp, civil, tz::TimeZone};

/// `notAfter` of a certificate in DER (RFC 5280 section 4.1).
pub(super) fn not_after(certificate: &[u8]) -> Option<Timestamp> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut fields, _) = element(certificate, SEQUENCE)?;
    if let Some((_version, rest)) = element(fields, VERSION) {
        fields = rest;
    }
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        // Serial number, signature algorithm, issuer.
        (_, fields) = element(fields, tag)?;
    }
    let (validity, _) = element(fields, SEQUENCE)?;
    let (_not_before, rest) = time(validity)?;
    let (not_after, _) = time(rest)?;
    Some(not_after)
}

fn time(der: &[u8]) -> Option<(Timestamp, &[u8])> {
    match element(der, UTC_TIME) {
        Some((text, rest)) => {
            // Two digits of the year: 50 is 1950 and 49 is 2049.
            let century = if text.first()? < &b'5' { "20" } else { "19" };
            Some((
                instant(&format!("{century}{}", std::str::from_utf8(text).ok()?))?,
                rest,
            ))
        }
        None => {
            let (text, rest) = element(der, GENERALIZED_TIME)?;
            Some((instant(std::str::from_utf8(text).ok()?)?, rest))
        }
    }
}

/// `YYYYMMDDHHMMSSZ`.
fn instant(text: &str) -> Option<Timestamp> {
    let digits = text.strip_suffix('Z').filter(|digits| digits.len() == 14)?;
    let part = |from: usize, to: usize| digits.get(from..to)?.parse::<i8>().ok();
    let date = civil::DateTime::new(
        digits.get(..4)?.parse().ok()?,
        part(4, 6)?,
        part(6, 8)?,
        part(8, 10)?,
        part(10, 12)?,
        part(12, 14)?,
        0,
    );
    let instant = date.ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
    Some(instant)
}

/// The content of the element of this tag at the start, and what follows it (X.690 section 8.1).
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, length], rest) = der.split_first_chunk()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match length {
        ..=0x7f => (usize::from(length), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            let length = bytes
                .iter()
                .fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
            (length, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0]`, explicit.
const VERSION: u8 = 0xa0;

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(year: i32) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["a".to_owned()]).expect("params");
        params.not_after = rcgen::date_time_ymd(year, 2, 3);
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn end_is_read_in_both_notations() {
        for year in [1999, 2001, 2049, 2050, 3000] {
            let expected: Timestamp = format!("{year}-02-03T00:00:00Z").parse().expect("an instant");

            assert_eq!(not_after(&certificate(year)), Some(expected));
        }
    }

    #[test]
    fn rubbish_has_no_end_and_does_no_harm() {
        let whole = certificate(2040);

        for length in 0..whole.len() {
            let _ = not_after(&whole[..length]);
        }
        for at in 0..whole.len() {
            for byte in [0, 0x7f, 0x84, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                let _ = not_after(&damaged);
            }
        }
        assert_eq!(not_after(b""), None);
        assert_eq!(not_after(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
