// SPDX-License-Identifier: GPL-2.0-only

//! Random numbers that stay the same for ever: a seed names a training run for good, so they must
//! not depend on the version of a library. xoshiro256++ of Blackman and Vigna, seeded by splitmix64.

/// A generator.
#[derive(Clone, Debug)]
pub struct Random([u64; 4]);

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        let mut x = seed;
        Self(std::array::from_fn(|_| {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `end`, 0 if that is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number whose logarithm is uniform between those of `low` and `high`.
    pub fn log_uniform(&mut self, low: f64, high: f64) -> f64 {
        low * (high / low).max(1.0).powf(self.unit())
    }

    /// A normally distributed number (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let r = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        r * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Puts a random choice of `count` elements first, in random order.
    pub fn choose<'a, T>(&mut self, items: &'a mut [T], count: usize) -> &'a mut [T] {
        let count = count.min(items.len());
        for i in 0..count {
            let other = i + self.below((items.len() - i) as u64) as usize;
            items.swap(i, other);
        }
        &mut items[..count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_the_same() {
        let mut r = Random::new(1);
        assert_eq!(r.bits(), 0xcfc5_d07f_6f03_c29b);
        assert_eq!(Random::new(1).below(0), 0);
        assert!((0..1000).all(|_| r.below(7) < 7));
        let mean = (0..10_000).map(|_| r.normal()).sum::<f64>() / 10_000.0;
        assert!(mean.abs() < 0.05);
        assert!((0..1000).all(|_| (2.0..=9.0).contains(&r.log_uniform(2.0, 9.0))));
    }

    #[test]
    fn chooses_without_repetition() {
        let mut items: Vec<_> = (0..100).collect();
        let mut some = Random::new(5).choose(&mut items, 30).to_vec();
        some.sort_unstable();
        some.dedup();
        assert_eq!(some.len(), 30);
    }
}
