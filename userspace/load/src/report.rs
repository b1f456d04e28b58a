// SPDX-License-Identifier: GPL-2.0-only

//! From latencies to numbers.

use serde_json::{json, Value};

/// One completed request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// When it completed, nanoseconds from the start.
    pub(crate) at: u64,
    /// How long it took, nanoseconds.
    pub(crate) latency: u64,
    /// Whether it read.
    pub(crate) read: bool,
}

/// The `p`-th part of sorted values (nearest rank), nanoseconds.
fn percentile(sorted: &[u64], p: f64) -> u64 {
    let rank = (sorted.len() as f64 * p).ceil() as usize;
    sorted.get(rank.saturating_sub(1).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

fn us(ns: u64) -> f64 {
    (ns as f64 / 10.0).round() / 100.0
}

fn numbers(mut latencies: Vec<u64>, ns: u64) -> Value {
    latencies.sort_unstable();
    let n = latencies.len() as u64;
    let mean = latencies.iter().sum::<u64>().checked_div(n).unwrap_or(0);
    let iops = if ns == 0 { 0.0 } else { n as f64 * 1e9 / ns as f64 };
    json!({
        "ios": n,
        "iops": iops.round(),
        "mean_us": us(mean),
        "p50_us": us(percentile(&latencies, 0.50)),
        "p90_us": us(percentile(&latencies, 0.90)),
        "p99_us": us(percentile(&latencies, 0.99)),
        "p999_us": us(percentile(&latencies, 0.999)),
        "max_us": us(latencies.last().copied().unwrap_or(0)),
    })
}

/// The numbers of the requests that completed in `[from, to)`; with reads and writes apart where there are both.
pub(crate) fn summary(samples: &[Sample], from: u64, to: u64) -> Value {
    let inside = |s: &&Sample| s.at >= from && s.at < to;
    let ns = to.saturating_sub(from);
    let all: Vec<u64> = samples.iter().filter(inside).map(|s| s.latency).collect();
    let mut out = numbers(all, ns);
    let some = |read: bool| -> Vec<u64> {
        samples.iter().filter(inside).filter(|s| s.read == read).map(|s| s.latency).collect()
    };
    let (reads, writes) = (some(true), some(false));
    if !reads.is_empty() && !writes.is_empty() {
        out["reads"] = numbers(reads, ns);
        out["writes"] = numbers(writes, ns);
    }
    out
}

/// The course over time, a window after the other.
pub(crate) fn windows(samples: &[Sample], window: u64, total: u64) -> Value {
    let mut out = Vec::new();
    let mut rest = samples;
    let mut from = 0;
    while from < total {
        // Completions are in order of time.
        let n = rest.partition_point(|s| s.at < from + window);
        let (here, later) = rest.split_at(n);
        let mut v = numbers(here.iter().map(|s| s.latency).collect(), window.min(total - from));
        v["t_ms"] = (from / 1_000_000).into();
        out.push(v);
        rest = later;
        from += window;
    }
    Value::Array(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_known_samples() {
        let samples: Vec<Sample> =
            (1..=100).map(|i| Sample { at: i * 10, latency: i * 1000, read: i > 90 }).collect();
        let v = summary(&samples, 0, 1001);
        assert_eq!((v["ios"].as_u64(), v["p50_us"].as_f64()), (Some(100), Some(50.0)));
        assert_eq!((v["p99_us"].as_f64(), v["max_us"].as_f64()), (Some(99.0), Some(100.0)));
        assert_eq!(v["reads"]["ios"].as_u64(), Some(10));
        let v = summary(&samples, 500, 600);
        assert_eq!((v["ios"].as_u64(), v["mean_us"].as_f64()), (Some(10), Some(54.5)));
        assert!(v["reads"].is_null());
        assert_eq!(summary(&[], 0, 100)["max_us"].as_f64(), Some(0.0));
        let w = windows(&samples, 100, 1001);
        assert_eq!(w.as_array().map(Vec::len), Some(11));
        let ios: u64 = w.as_array().into_iter().flatten().filter_map(|v| v["ios"].as_u64()).sum();
        assert_eq!(ios, 100);
    }
}
