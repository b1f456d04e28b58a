// SPDX-License-Identifier: GPL-2.0-only

//! docs/sysfs.md has every knob with its range and default, and no other.

use presnap_engine::knob::{Values, KNOBS};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/sysfs.md");

/// The rows of the table of settings: file, type, range, default.
fn rows(page: &str) -> Vec<[String; 4]> {
    let (_, rest) = page.split_once("## Settings\n").expect("a section Settings");
    let section = rest.split_once("\n## ").map_or(rest, |s| s.0);
    section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            [cells[0], cells[1], cells[3], cells[4]].map(|cell| cell.replace('`', ""))
        })
        .collect()
}

#[test]
fn every_knob_is_documented() {
    let page = std::fs::read_to_string(PAGE).expect(PAGE);
    let rows = rows(&page);
    let names: Vec<_> = rows.iter().map(|row| row[0].as_str()).collect();
    let known: Vec<_> = KNOBS.iter().map(|spec| spec.name.to_str().unwrap()).collect();
    assert_eq!(names, known, "the table of settings, in the order of KNOBS");
    for (spec, [name, kind, range, default]) in KNOBS.iter().zip(&rows) {
        let (want_kind, want_range) = match spec.values {
            Values::Number { min, max } => ("number", format!("{min} to {max}")),
            Values::NumberOrUnlimited { min, max } => {
                ("number or unlimited", format!("{min} to {max}"))
            }
            Values::Words(words) => ("word", words.join(" ")),
        };
        let mut want_default = String::new();
        spec.format(spec.default, &mut want_default).unwrap();
        assert_eq!(kind, want_kind, "type of {name}");
        assert_eq!(*range, want_range, "range of {name}");
        assert_eq!(*default, want_default, "default of {name}");
        assert!(page.contains(&format!("**`{name}`**: ")), "what {name} does");
    }
}
