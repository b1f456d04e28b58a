// SPDX-License-Identifier: GPL-2.0-only

//! What is written to the knobs in sysfs: a byte chooses the knob, the rest is the text.

use presnap_engine::knob::{Values, KNOBS};

use super::table::number;
use crate::bytes::Input;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let spec = &KNOBS[usize::from(input.u8()) % KNOBS.len()];
    let text = input.rest();
    let parsed = spec.parse(text);
    let word = text.trim_ascii();
    let lower = word.to_ascii_lowercase();
    let within = |min: u64, max: u64| number(word).filter(|n| (min..=max).contains(n));
    let expected = match spec.values {
        Values::Number { min, max } => within(min, max),
        Values::NumberOrUnlimited { .. } if lower == b"unlimited" => Some(u64::MAX),
        Values::NumberOrUnlimited { min, max } => within(min, max),
        Values::Words(words) => {
            words.iter().position(|w| w.as_bytes() == lower.as_slice()).map(|i| i as u64)
        }
    };
    assert_eq!(parsed, expected, "{:?}", spec.name);
    if let Some(value) = parsed {
        let mut shown = String::new();
        spec.format(value, &mut shown).expect("a string takes all");
        assert_eq!(spec.parse(shown.as_bytes()), Some(value), "{shown}");
        assert_eq!(spec.parse(format!(" \t{shown}\n").as_bytes()), Some(value));
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for (i, spec) in (0..).zip(&KNOBS) {
        // The second is 10 if it wraps.
        let mut texts = vec![String::new(), "18446744073709551626".into()];
        spec.format(spec.default, &mut texts[0]).expect("a string takes all");
        match spec.values {
            Values::Number { min, max } => {
                texts.extend([
                    format!("{max}\n"),
                    format!(" {min}"),
                    max.wrapping_add(1).to_string(),
                ]);
            }
            Values::NumberOrUnlimited { max, .. } => {
                texts.extend([max.to_string(), "Unlimited".into()]);
            }
            Values::Words(words) => texts.extend(words.iter().map(|w| w.to_string())),
        }
        out.extend(texts.iter().map(|t| [&[i], t.as_bytes()].concat()));
    }
    out
}
