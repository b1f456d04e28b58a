// SPDX-License-Identifier: GPL-2.0-only

//! Numbers with units, in and out: durations, sizes, times of day, identifiers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Parses `5s`, `250ms`, `2m`, `1h`, `10us`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let value: f64 =
        number.parse().map_err(|_| format!("`{text}` is no duration (like 5s, 250ms, 2m)"))?;
    let factor = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("`{other}` is no unit of time (us, ms, s, m, h)")),
    };
    Duration::try_from_secs_f64(value * factor).map_err(|_| format!("`{text}` is too long"))
}

/// Shows a number of bytes: `1.5 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Shows a number of blocks as bytes.
pub(crate) fn blocks(n: u64) -> String {
    bytes(n.saturating_mul(u64::from(presnap_engine::geometry::BLOCK_BYTES)))
}

/// Shows nanoseconds with a fitting unit.
pub(crate) fn ns(n: u64) -> String {
    match n {
        0..=9_999 => format!("{n} ns"),
        10_000..=9_999_999 => format!("{:.1} us", n as f64 / 1e3),
        10_000_000..=9_999_999_999 => format!("{:.1} ms", n as f64 / 1e6),
        _ => format!("{:.2} s", n as f64 / 1e9),
    }
}

/// Shows a time of day (nanoseconds since 1970) as UTC, RFC 3339.
pub(crate) fn realtime(ns: u64) -> String {
    let secs = ns / 1_000_000_000;
    let (days, rest) = (secs / 86_400, secs % 86_400);
    // Civil from days (Howard Hinnant), for days since 1970-01-01, never negative here.
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60,
        ns / 1_000_000 % 1000
    )
}

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Shows 16 bytes as 32 hex digits.
pub(crate) fn hex(id: &[u8; 16]) -> String {
    id.iter().map(|b| format!("{b:02x}")).collect()
}

/// Shows a uuid in the usual form.
pub(crate) fn uuid(id: &[u8; 16]) -> String {
    let h = hex(id);
    format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
}

/// Parses 32 hex digits, dashes allowed.
pub(crate) fn parse_hex(text: &str) -> Result<[u8; 16], String> {
    let digits: Vec<u8> = text.bytes().filter(|&b| b != b'-').collect();
    let mut out = [0u8; 16];
    if digits.len() != 32 {
        return Err(format!("`{text}`: 32 hex digits are needed"));
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).unwrap_or("?");
        *byte = u8::from_str_radix(pair, 16).map_err(|_| format!("`{pair}` are no hex digits"))?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        for bad in ["", "s", "5x", "-1s", "1e400s", "1..2s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(bytes(1536 << 20), "1.5 GiB");
        assert_eq!(realtime(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(realtime(1_709_164_799_999_000_000), "2024-02-28T23:59:59.999Z");
        assert_eq!(realtime(1_709_251_200_000_000_000), "2024-03-01T00:00:00.000Z");
        let id = [0xab; 16];
        assert_eq!(parse_hex(&hex(&id)), Ok(id));
        assert_eq!(parse_hex(&uuid(&id)), Ok(id));
        assert!(parse_hex("12").is_err());
        assert!(parse_hex(&"zz".repeat(16)).is_err());
    }
}
