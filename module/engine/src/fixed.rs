// SPDX-License-Identifier: GPL-2.0-only

//! Fixed-point arithmetic: probabilities, exponential decay, logarithms and the sigmoid.
//!
//! The kernel forbids floating point, treats an arithmetic overflow as a bug and has no 128-bit
//! division, so everything here is integer arithmetic whose range is stated, with small tables
//! instead of functions. The same code runs in userspace, so a score is the same bit for bit.
//!
//! There is one rounding rule in the engine, [`round_shift`]: add half of the divisor, shift right
//! arithmetically (ties go up). It is the single-rounding requantisation of CMSIS-NN.

/// A probability: 0 is never, 65535 is certain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Prob(pub u16);

impl Prob {
    /// Never.
    pub const ZERO: Self = Self(0);
    /// As likely as not.
    pub const HALF: Self = Self(32768);
    /// Certain.
    pub const ONE: Self = Self(u16::MAX);

    /// Returns the probability of `n` parts in a thousand; more than a thousand is certain.
    pub const fn from_permille(n: u32) -> Self {
        let n = if n > 1000 { 1000 } else { n };
        Self(((n * 65535 + 500) / 1000) as u16)
    }

    /// Returns the nearest number of parts in a thousand.
    pub const fn permille(self) -> u32 {
        (self.0 as u32 * 1000 + 32767) / 65535
    }

    /// Returns `part / whole`, at most certain; zero if `whole` is zero.
    pub const fn from_ratio(part: u64, whole: u64) -> Self {
        if whole == 0 {
            return Self::ZERO;
        }
        if part >= whole {
            return Self::ONE;
        }
        // Keep 16 bits of headroom for the multiplication; the ratio does not change noticeably.
        let excess = 16u32.saturating_sub(whole.leading_zeros());
        let (part, whole) = (part >> excess, whole >> excess);
        match part.wrapping_mul(65535).checked_div(whole) {
            Some(n) if n < 65535 => Self(n as u16),
            _ => Self::ONE,
        }
    }

    /// Returns the probability that it does not happen.
    pub const fn complement(self) -> Self {
        Self(u16::MAX - self.0)
    }

    /// Returns the probability of two independent events.
    pub const fn and(self, other: Self) -> Self {
        Self(((self.0 as u64 * other.0 as u64 + 32767) / 65535) as u16)
    }

    /// Returns the probability of at least one of two independent events.
    pub const fn or(self, other: Self) -> Self {
        self.complement().and(other.complement()).complement()
    }
}

/// A time constant of exponential decay: after it, 1/e of a value is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tau {
    /// log2(e) / tau per millisecond, in Q40.
    rate_q40: u64,
}

impl Tau {
    /// One second.
    pub const SECONDS_1: Self = Self::from_ms(1_000);
    /// Ten seconds.
    pub const SECONDS_10: Self = Self::from_ms(10_000);
    /// A minute.
    pub const SECONDS_60: Self = Self::from_ms(60_000);
    /// Ten minutes.
    pub const SECONDS_600: Self = Self::from_ms(600_000);

    /// Returns the time constant of `ms` milliseconds; zero counts as one.
    pub const fn from_ms(ms: u32) -> Self {
        // log2(e) in Q40.
        const LOG2_E: u64 = 1_586_259_972_792;
        let ms = if ms == 0 { 1 } else { ms as u64 };
        Self { rate_q40: (LOG2_E + ms / 2) / ms }
    }
}

/// Returns `value * e^(-dt / tau)`, rounded to the nearest integer.
pub fn decay(value: u32, dt_ms: u64, tau: Tau) -> u32 {
    if dt_ms == 0 || value == 0 {
        return value;
    }
    scale_exp2_neg(value, dt_ms.saturating_mul(tau.rate_q40) >> 8)
}

/// Returns `value * 2^(-exponent)`, the exponent in Q32, rounded to the nearest integer.
///
/// The exponent has 32 bits of fraction so that a counter with a long time constant decays by the
/// right amount even when it is brought forward every millisecond.
fn scale_exp2_neg(value: u32, exponent_q32: u64) -> u32 {
    let whole = exponent_q32 >> 32;
    if whole > 32 {
        return 0;
    }
    let shift = 31 + whole as u32;
    // value < 2^32 and the factor is at most 2^31, so with the rounding term below 2^64.
    let product = u64::from(value) * u64::from(exp2_neg_q31(exponent_q32 as u32));
    (product.wrapping_add(1 << (shift - 1)) >> shift) as u32
}

/// Returns 2^(-f) in Q31 for a fraction `f` in Q32 below one.
fn exp2_neg_q31(fraction_q32: u32) -> u32 {
    let index = (fraction_q32 >> 26) as usize;
    let low = EXP2_NEG.get(index).copied().unwrap_or(0);
    let high = EXP2_NEG.get(index.wrapping_add(1)).copied().unwrap_or(low);
    // The table falls by less than 2^25 a step, so the product stays below 2^51.
    let part = u64::from(fraction_q32 & 0x3ff_ffff);
    let chord = (u64::from(low.saturating_sub(high)) * part) >> 26;
    // The curve lies below its chord by (ln 2 / 64)^2 / 2 * low * t * (1 - t). Without that term the
    // slope at zero would be half a percent too small, and so the decay in many small steps.
    const CURVATURE_Q32: u64 = 251_897;
    let bend = (u64::from(low) * CURVATURE_Q32) >> 32;
    let below = (bend * ((part * (0x400_0000 - part)) >> 26)) >> 26;
    low.saturating_sub(chord as u32).saturating_sub(below as u32)
}

/// Returns `1 - e^(-x)` for `x` in Q16: the probability of an event of a Poisson process.
pub fn one_minus_exp(x_q16: u64) -> Prob {
    // log2(e) in Q16.
    const LOG2_E: u64 = 94_548;
    let exponent = x_q16.saturating_mul(LOG2_E);
    Prob(u16::MAX.saturating_sub(scale_exp2_neg(u32::from(u16::MAX), exponent) as u16))
}

/// Returns log2(x) in Q8 (0 for 0 and 1, at most 16383); it never falls as `x` rises.
pub fn ilog2_q8(x: u64) -> u16 {
    let Some(whole) = x.checked_ilog2() else { return 0 };
    let mantissa = x << (63 - whole);
    let fraction = LOG2_FRACTION.get((mantissa >> 55) as usize & 0xff).copied().unwrap_or(0);
    (whole as u16) << 8 | u16::from(fraction)
}

/// The largest logit that [`sigmoid`] tells from certainty, in Q8.
pub const LOGIT_MAX_Q8: i32 = 12 * 256;

/// Returns 1 / (1 + e^(-x)) for a logit in Q8; the input is clamped to [`LOGIT_MAX_Q8`].
pub fn sigmoid(logit_q8: i32) -> Prob {
    let x = logit_q8.unsigned_abs().min(LOGIT_MAX_Q8 as u32);
    let index = (x >> 5) as usize;
    let low = u32::from(SIGMOID.get(index).copied().unwrap_or(u16::MAX));
    let high = u32::from(SIGMOID.get(index.wrapping_add(1)).copied().unwrap_or(low as u16));
    let p = Prob((low + ((high.saturating_sub(low) * (x & 31) + 16) >> 5)) as u16);
    if logit_q8 < 0 {
        p.complement()
    } else {
        p
    }
}

/// Returns `(x + 2^(shift-1)) >> shift`, the engine's only rounding; a shift of zero changes nothing.
///
/// The caller keeps |x| at most 2^62 and the shift at most 62; beyond that the result wraps, it
/// does not panic.
pub const fn round_shift(x: i64, shift: u32) -> i64 {
    if shift == 0 {
        return x;
    }
    let shift = if shift > 62 { 62 } else { shift };
    x.wrapping_add(1 << (shift - 1)) >> shift
}

/// Returns `n / d` rounded up, 0 if `d` is. The one of the standard library adds 1 to a quotient, which the compiler
/// cannot know to fit.
pub const fn div_ceil(n: u64, d: u64) -> u64 {
    match (n.checked_div(d), n.checked_rem(d)) {
        (Some(quotient), Some(rest)) => quotient.saturating_add((rest != 0) as u64),
        _ => 0,
    }
}

/// Returns whole milliseconds of a time in nanoseconds.
pub const fn ns_to_ms(ns: u64) -> u64 {
    ns / 1_000_000
}

/// 2^(-i/64) in Q31.
const EXP2_NEG: [u32; 65] = [
    2147483648, 2124350982, 2101467502, 2078830522, 2056437387, 2034285470, 2012372174, 1990694927,
    1969251188, 1948038440, 1927054196, 1906295993, 1885761398, 1865448001, 1845353420, 1825475297,
    1805811301, 1786359126, 1767116489, 1748081133, 1729250827, 1710623359, 1692196547, 1673968228,
    1655936265, 1638098541, 1620452965, 1602997467, 1585730000, 1568648537, 1551751076, 1535035634,
    1518500250, 1502142985, 1485961921, 1469955159, 1454120821, 1438457051, 1422962010, 1407633882,
    1392470869, 1377471191, 1362633090, 1347954824, 1333434672, 1319070932, 1304861917, 1290805962,
    1276901417, 1263146652, 1249540052, 1236080024, 1222764986, 1209593378, 1196563654, 1183674286,
    1170923762, 1158310587, 1145833280, 1133490379, 1121280436, 1109202018, 1097253708, 1085434106,
    1073741824,
];

/// log2(1 + i/256) in Q8.
const LOG2_FRACTION: [u8; 256] = [
    0, 1, 3, 4, 6, 7, 9, 10, 11, 13, 14, 16, 17, 18, 20, 21, 22, 24, 25, 26, 28, 29, 30, 32, 33,
    34, 36, 37, 38, 40, 41, 42, 44, 45, 46, 47, 49, 50, 51, 52, 54, 55, 56, 57, 59, 60, 61, 62, 63,
    65, 66, 67, 68, 69, 71, 72, 73, 74, 75, 77, 78, 79, 80, 81, 82, 84, 85, 86, 87, 88, 89, 90, 92,
    93, 94, 95, 96, 97, 98, 99, 100, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113,
    114, 116, 117, 118, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129, 130, 131, 132, 133,
    134, 135, 136, 137, 138, 139, 140, 141, 142, 143, 144, 145, 146, 147, 148, 149, 150, 151, 152,
    153, 154, 155, 155, 156, 157, 158, 159, 160, 161, 162, 163, 164, 165, 166, 167, 168, 169, 169,
    170, 171, 172, 173, 174, 175, 176, 177, 178, 178, 179, 180, 181, 182, 183, 184, 185, 185, 186,
    187, 188, 189, 190, 191, 192, 192, 193, 194, 195, 196, 197, 198, 198, 199, 200, 201, 202, 203,
    203, 204, 205, 206, 207, 208, 208, 209, 210, 211, 212, 212, 213, 214, 215, 216, 216, 217, 218,
    219, 220, 220, 221, 222, 223, 224, 224, 225, 226, 227, 228, 228, 229, 230, 231, 231, 232, 233,
    234, 234, 235, 236, 237, 238, 238, 239, 240, 241, 241, 242, 243, 244, 244, 245, 246, 247, 247,
    248, 249, 249, 250, 251, 252, 252, 253, 254, 255, 255,
];

/// 1/(1 + e^(-i/8)) for i/8 from 0 to 12, as a probability.
const SIGMOID: [u16; 97] = [
    32768, 34813, 36842, 38840, 40793, 42687, 44510, 46254, 47910, 49473, 50940, 52309, 53580,
    54753, 55833, 56821, 57723, 58543, 59286, 59958, 60564, 61108, 61597, 62035, 62427, 62777,
    63089, 63367, 63614, 63834, 64029, 64203, 64356, 64493, 64613, 64720, 64815, 64899, 64973,
    65038, 65096, 65148, 65193, 65233, 65268, 65299, 65327, 65351, 65373, 65392, 65409, 65424,
    65437, 65448, 65458, 65467, 65475, 65482, 65488, 65494, 65499, 65503, 65507, 65510, 65513,
    65516, 65518, 65520, 65522, 65523, 65525, 65526, 65527, 65528, 65529, 65529, 65530, 65531,
    65531, 65532, 65532, 65532, 65533, 65533, 65533, 65533, 65534, 65534, 65534, 65534, 65534,
    65534, 65534, 65534, 65534, 65535, 65535,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prob_conversions() {
        assert_eq!(Prob::from_permille(0), Prob::ZERO);
        assert_eq!(Prob::from_permille(1000), Prob::ONE);
        assert_eq!(Prob::from_permille(u32::MAX), Prob::ONE);
        for n in 0..=1000 {
            assert_eq!(Prob::from_permille(n).permille(), n);
        }
        assert_eq!(Prob::from_ratio(1, 0), Prob::ZERO);
        assert_eq!(Prob::from_ratio(7, 7), Prob::ONE);
        assert_eq!(Prob::from_ratio(1, 2), Prob(32767));
        assert_eq!(Prob::ONE.and(Prob::ONE), Prob::ONE);
        assert_eq!(Prob::ONE.or(Prob::ZERO), Prob::ONE);
        assert_eq!(Prob::HALF.and(Prob::HALF).permille(), 250);
        assert_eq!(Prob::HALF.or(Prob::HALF).permille(), 750);
    }

    #[test]
    fn ratio_of_large_numbers() {
        for shift in 0..63 {
            let whole = 1u64 << shift;
            let got = f64::from(Prob::from_ratio(whole / 4, whole).0) / 65535.0;
            let want = (whole / 4) as f64 / whole as f64;
            assert!((got - want).abs() < 1e-4, "{shift}: {got} {want}");
        }
        assert!(Prob::from_ratio(u64::MAX / 3, u64::MAX).permille().abs_diff(333) <= 1);
    }

    #[test]
    fn decay_follows_the_exponential() {
        for (ms, tau) in [
            (1_000, Tau::SECONDS_1),
            (10_000, Tau::SECONDS_10),
            (60_000, Tau::SECONDS_60),
            (600_000, Tau::SECONDS_600),
        ] {
            for dt in (0..20_000_000u64).step_by(77_773) {
                for value in [1u32, 4096, 123_456_789, u32::MAX] {
                    let want = f64::from(value) * (-(dt as f64) / f64::from(ms)).exp();
                    let got = f64::from(decay(value, dt, tau));
                    assert!(
                        (got - want).abs() <= 0.6 + want * 2e-6,
                        "{value} {dt} {ms}: {got} {want}"
                    );
                }
            }
            assert_eq!(decay(u32::MAX, u64::MAX, tau), 0);
        }
    }

    #[test]
    fn log2_is_monotone_and_near() {
        let mut last = 0;
        for x in 0..100_000u64 {
            let y = ilog2_q8(x);
            assert!(y >= last);
            last = y;
            if x > 0 {
                assert!((f64::from(y) / 256.0 - (x as f64).log2()).abs() < 0.0085, "{x}");
            }
        }
        assert_eq!(ilog2_q8(1 << 63), 63 << 8);
        assert!(ilog2_q8(u64::MAX) > 63 << 8);
    }

    #[test]
    fn sigmoid_is_monotone_symmetric_and_near() {
        let mut last = Prob::ZERO;
        for x in -4000..=4000 {
            let p = sigmoid(x);
            assert!(p >= last);
            last = p;
            if x != 0 {
                assert_eq!(sigmoid(-x), p.complement());
            }
            let want = 1.0 / (1.0 + (-f64::from(x) / 256.0).exp());
            assert!((f64::from(p.0) / 65535.0 - want).abs() < 3e-4, "{x}");
        }
        assert_eq!(sigmoid(i32::MIN), Prob::ZERO);
        assert_eq!(sigmoid(i32::MAX), Prob::ONE);
    }

    #[test]
    fn poisson() {
        for x in (0..20 * 65536u64).step_by(997) {
            let want = 1.0 - (-(x as f64) / 65536.0).exp();
            let got = f64::from(one_minus_exp(x).0) / 65535.0;
            assert!((got - want).abs() < 1e-4, "{x}: {got} {want}");
        }
        assert_eq!(one_minus_exp(u64::MAX), Prob::ONE);
    }

    #[test]
    fn rounding_rule() {
        for (x, shift, want) in
            [(3, 1, 2), (-3, 1, -1), (1, 1, 1), (-1, 1, 0), (5, 0, 5), (-8, 2, -2), (-7, 2, -2)]
        {
            assert_eq!(round_shift(x, shift), want);
        }
        assert_eq!(round_shift(1 << 62, 62), 1);
        assert_eq!(round_shift(-(1 << 62), 62), -1);
        round_shift(i64::MAX, 200);
    }
}
