// SPDX-License-Identifier: GPL-2.0-only

//! Predictors that need no training. They are always there, and the baselines a model must beat.

use crate::features::Inputs;
use crate::fixed::{one_minus_exp, Prob};
use crate::stream::AreaAhead;

/// By the time since the last write: `horizon / (horizon + age)`, the rule of succession for an
/// event last seen `age` ago. An area not remembered is never written.
pub fn age(inputs: &Inputs) -> Prob {
    match inputs.age_ms {
        Some(age) => {
            Prob::from_ratio(inputs.horizon_ms, inputs.horizon_ms.saturating_add(age).max(1))
        }
        None => Prob::ZERO,
    }
}

/// By the 600 s write count: a Poisson process of rate `d600 / 600 s`. The study's honest baseline.
///
/// A device that was observed for a shorter time than that cannot have the count of 600 s yet, so
/// its counts stand for `600 s * (1 - e^(-observed / 600 s))` only.
pub fn ewma(inputs: &Inputs) -> Prob {
    const TAU_MS: u64 = 600_000;
    let window_ms = match inputs.observed_ms {
        0 => TAU_MS,
        observed => {
            let share = one_minus_exp((observed.min(16 * TAU_MS) << 16) / TAU_MS);
            ((TAU_MS * u64::from(share.0)) >> 16).max(1000)
        }
    };
    // d600 is in 1/4096, so d600 * horizon / window * 16 is the expected number of writes in Q16.
    let expected = u64::from(inputs.d600).saturating_mul(inputs.horizon_ms).saturating_mul(16);
    one_minus_exp(expected.checked_div(window_ms).unwrap_or(0))
}

/// By the stream that is heading for the area, if one is: it comes as much further as it has come
/// so far with even odds, and is late more often than early.
pub fn stream(ahead: Option<&AreaAhead>, horizon_ns: u64) -> Prob {
    let Some(ahead) = ahead else { return Prob::ZERO };
    let reaches = Prob::from_ratio(
        ahead.stream_blocks,
        ahead.stream_blocks.saturating_add(ahead.distance_blocks),
    );
    // Twice the expected time gives certainty, the expected time 2/3, and so on.
    let in_time = match ahead.eta_ns {
        0 => Prob::ONE,
        eta => Prob::from_ratio(horizon_ns, horizon_ns.saturating_add(eta / 2)),
    };
    reaches.and(in_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_falls() {
        let at = |age, horizon_ms| age_of(Some(age), horizon_ms);
        fn age_of(age_ms: Option<u64>, horizon_ms: u64) -> u32 {
            age(&Inputs { age_ms, horizon_ms, ..Inputs::default() }).permille()
        }
        assert_eq!(at(0, 1000), 1000);
        assert_eq!(at(1000, 1000), 500);
        assert_eq!(at(9000, 1000), 100);
        assert_eq!(age_of(None, 1000), 0);
        assert_eq!(at(0, 0), 0);
    }

    #[test]
    fn ewma_is_poisson() {
        let i = |d600, horizon_ms| ewma(&Inputs { d600, horizon_ms, ..Inputs::default() });
        // 600 writes decayed with 600 s are one a second.
        assert!(i(600 * 4096, 1000).permille().abs_diff(632) <= 1);
        assert!(i(6 * 4096, 10_000).permille().abs_diff(95) <= 1);
        assert_eq!(i(0, 1_000_000), Prob::ZERO);
        // Ten writes in the first ten seconds are one a second, too.
        let young =
            Inputs { d600: 10 * 4096, horizon_ms: 1000, observed_ms: 10_000, ..Inputs::default() };
        assert!(ewma(&young).permille().abs_diff(632) <= 10);
        assert_eq!(i(u32::MAX, u64::MAX), Prob::ONE);
    }

    #[test]
    fn streams_fade_with_distance() {
        let near = AreaAhead { area: 1, eta_ns: 0, stream_blocks: 100, distance_blocks: 0 };
        let far = AreaAhead { eta_ns: 4_000, distance_blocks: 100, ..near };
        assert_eq!(stream(Some(&near), 1), Prob::ONE);
        assert_eq!(stream(Some(&far), 2_000).permille(), 250);
        assert_eq!(stream(None, 1), Prob::ZERO);
    }
}
