// SPDX-License-Identifier: GPL-2.0-only

//! The words of a table line, and the words and numbers that they are made of.

use presnap_engine::table::{parse_features, parse_id, parse_number, parse_scope, Features};

use crate::bytes::says;

/// The line of features, as `dmsetup table` shows it.
fn line(f: &Features) -> String {
    let mut out = f.words().to_string();
    if let Some(id) = f.origin_id {
        out += " origin_id ";
        id.iter().for_each(|b| out += &format!("{b:02x}"));
    }
    if let Some(scope) = f.scope {
        out += &format!(" scope {}", scope.as_str());
    }
    if let Some(on_error) = f.on_error {
        out += &format!(" on_error {}", on_error.as_str());
    }
    out
}

/// Words are cut at spaces, as device-mapper does; a word may be of any other bytes.
pub(crate) fn words(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split(|&b| b == b' ' || b == b'\n').filter(|w| !w.is_empty())
}

/// What a number is, by the standard library.
pub(crate) fn number(word: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(word).ok()?;
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

pub(crate) fn run(data: &[u8]) {
    match parse_features(words(data)) {
        Ok(features) => {
            let shown = line(&features);
            assert_eq!(parse_features(words(shown.as_bytes())), Ok(features), "{shown}");
            assert!(words(shown.as_bytes()).count() == 1 + features.words());
            // At most a word for the count, and what it counts.
            let given = words(data).count();
            assert!(given == 0 || given == 1 + features.words());
        }
        Err(why) => says(why.to_str().expect("plain text")),
    }
    for word in words(data) {
        assert_eq!(parse_number(word), number(word));
        if let Some(id) = parse_id(word) {
            let shown: String = id.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(shown.as_bytes(), word.to_ascii_lowercase());
        }
        if let Some(scope) = parse_scope(word) {
            assert_eq!(scope.as_str().as_bytes(), word.to_ascii_lowercase());
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [
        "0",
        "6 scope image on_error fail-writes origin_id 000102030405060708090a0b0c0d0e0F",
        "4 ON_ERROR drop-snapshot Scope DELTA",
        "4 scope delta scope image",
        "2 colour red",
        "16",
        "18446744073709551615 18446744073709551616",
        "2 scope all",
        "2 origin_id 12",
        "0 x",
    ]
    .map(|s| s.as_bytes().to_vec())
    .to_vec()
}
