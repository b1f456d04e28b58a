// SPDX-License-Identifier: GPL-2.0-only

//! The words of a table line: `<origin> <region> [<#feature args> [<key> <value>]...]`.

use core::ffi::CStr;

pub use crate::region::Scope;

/// Parses the word of a scope, in any case.
pub fn parse_scope(word: &[u8]) -> Option<Scope> {
    [Scope::Delta, Scope::Image]
        .into_iter()
        .find(|s| word.eq_ignore_ascii_case(s.as_str().as_bytes()))
}

/// What happens to a write that cannot be guarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The snapshot is dropped, the write goes on.
    #[default]
    DropSnapshot,
    /// The write fails, the snapshot stays.
    FailWrites,
}

impl OnError {
    /// The word of tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DropSnapshot => "drop-snapshot",
            Self::FailWrites => "fail-writes",
        }
    }
}

/// The feature arguments of a table line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `origin_id`: the id that the region's superblock must have.
    pub origin_id: Option<[u8; 16]>,
    /// `scope`: that of snapshots that do not say their own.
    pub scope: Option<Scope>,
    /// `on_error`.
    pub on_error: Option<OnError>,
}

impl Features {
    /// Number of words they take in a table line.
    pub const fn words(&self) -> usize {
        2 * (self.origin_id.is_some() as usize
            + self.scope.is_some() as usize
            + self.on_error.is_some() as usize)
    }
}

fn hex_digit(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c.wrapping_sub(b'0')),
        b'a'..=b'f' => Some(c.wrapping_sub(b'a').wrapping_add(10)),
        b'A'..=b'F' => Some(c.wrapping_sub(b'A').wrapping_add(10)),
        _ => None,
    }
}

/// Parses 32 hexadecimal digits.
pub fn parse_id(word: &[u8]) -> Option<[u8; 16]> {
    if word.len() != 32 {
        return None;
    }
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(word.chunks_exact(2)) {
        let (high, low) = (hex_digit(*pair.first()?)?, hex_digit(*pair.get(1)?)?);
        *byte = high << 4 | low;
    }
    Some(id)
}

/// Parses a decimal number: digits only, no sign, no overflow.
pub fn parse_number(word: &[u8]) -> Option<u64> {
    if word.is_empty() {
        return None;
    }
    word.iter().try_fold(0u64, |n, &c| {
        let digit = c.is_ascii_digit().then(|| c.wrapping_sub(b'0'))?;
        n.checked_mul(10)?.checked_add(digit.into())
    })
}

/// Parses the words of a table line after origin and region.
///
/// # Errors
///
/// The text for `ti->error`.
pub fn parse_features<'a>(
    mut words: impl Iterator<Item = &'a [u8]>,
) -> Result<Features, &'static CStr> {
    let mut features = Features::default();
    let Some(count) = words.next() else { return Ok(features) };
    let count = parse_number(count).ok_or(c"Invalid number of feature arguments")?;
    if count > 16 {
        return Err(c"Too many feature arguments");
    }
    if count & 1 != 0 {
        return Err(c"Number of feature arguments must be even");
    }
    for _ in 0..count / 2 {
        let (Some(key), Some(value)) = (words.next(), words.next()) else {
            return Err(c"Not enough feature arguments");
        };
        let is = |word: &str| key.eq_ignore_ascii_case(word.as_bytes());
        let twice = if is("origin_id") {
            let id = parse_id(value).ok_or(c"origin_id must be 32 hexadecimal digits")?;
            features.origin_id.replace(id).is_some()
        } else if is("scope") {
            let scope = parse_scope(value).ok_or(c"scope must be delta or image")?;
            features.scope.replace(scope).is_some()
        } else if is("on_error") {
            let on_error = [OnError::DropSnapshot, OnError::FailWrites]
                .into_iter()
                .find(|o| value.eq_ignore_ascii_case(o.as_str().as_bytes()))
                .ok_or(c"on_error must be drop-snapshot or fail-writes")?;
            features.on_error.replace(on_error).is_some()
        } else {
            return Err(c"Unrecognised feature requested");
        };
        if twice {
            return Err(c"Feature given twice");
        }
    }
    match words.next() {
        Some(_) => Err(c"Unexpected arguments after the features"),
        None => Ok(features),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Features, &'static CStr> {
        parse_features(line.split_whitespace().map(str::as_bytes))
    }

    #[test]
    fn good_lines() {
        assert_eq!(parse(""), Ok(Features::default()));
        assert_eq!(parse("0"), Ok(Features::default()));
        let all =
            parse("6 SCOPE Image on_error fail-writes origin_id 000102030405060708090a0b0c0d0e0F")
                .unwrap();
        assert_eq!(all.scope, Some(Scope::Image));
        assert_eq!(all.on_error, Some(OnError::FailWrites));
        assert_eq!(all.origin_id.unwrap()[15], 15);
        assert_eq!(all.words(), 6);
    }

    #[test]
    fn bad_lines_say_what_is_wrong() {
        for (line, error) in [
            ("x", c"Invalid number of feature arguments"),
            ("-1", c"Invalid number of feature arguments"),
            ("2x", c"Invalid number of feature arguments"),
            ("99999999999999999999999", c"Invalid number of feature arguments"),
            ("18", c"Too many feature arguments"),
            ("1 scope", c"Number of feature arguments must be even"),
            ("2 scope", c"Not enough feature arguments"),
            ("2 scope all", c"scope must be delta or image"),
            ("2 colour red", c"Unrecognised feature requested"),
            ("2 origin_id 12", c"origin_id must be 32 hexadecimal digits"),
            ("2 on_error panic", c"on_error must be drop-snapshot or fail-writes"),
            ("4 scope delta scope image", c"Feature given twice"),
            ("0 scope", c"Unexpected arguments after the features"),
        ] {
            assert_eq!(parse(line), Err(error), "{line}");
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(parse_number(b"18446744073709551615"), Some(u64::MAX));
        for bad in ["", "18446744073709551616", "+1", "-1", " 1", "1 ", "0x1", "1.5"] {
            assert_eq!(parse_number(bad.as_bytes()), None, "{bad}");
        }
    }
}
