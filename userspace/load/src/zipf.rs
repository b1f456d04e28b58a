// SPDX-License-Identifier: GPL-2.0-only

//! Zipf-distributed ranks for any skew, by rejection-inversion (W. Hörmann, G. Derflinger, "Rejection-inversion to
//! generate variates from monotone discrete distributions", 1996), which needs no table and no sum over all ranks.

use fastrand::Rng;

/// The distribution: rank k (from 0) of `n` has a weight of (k + 1)^-theta.
pub(crate) struct Zipf {
    n: f64,
    theta: f64,
    x1: f64,
    hn: f64,
    s: f64,
}

impl Zipf {
    /// A distribution over `n` ranks.
    pub(crate) fn new(n: u64, theta: f64) -> Self {
        let mut z = Self { n: n.max(1) as f64, theta, x1: 0.0, hn: 0.0, s: 0.0 };
        z.x1 = z.integral(1.5) - 1.0;
        z.hn = z.integral(z.n + 0.5);
        z.s = 2.0 - z.inverse(z.integral(2.5) - 2f64.powf(-theta));
        z
    }

    /// The integral of x^-theta, up to a constant.
    fn integral(&self, x: f64) -> f64 {
        let e = 1.0 - self.theta;
        if e.abs() < 1e-9 {
            x.ln()
        } else {
            (x.powf(e) - 1.0) / e
        }
    }

    fn inverse(&self, y: f64) -> f64 {
        let e = 1.0 - self.theta;
        if e.abs() < 1e-9 {
            y.exp()
        } else {
            (1.0 + y * e).max(0.0).powf(1.0 / e)
        }
    }

    /// Draws a rank.
    pub(crate) fn draw(&self, rng: &mut Rng) -> u64 {
        loop {
            let u = self.hn + rng.f64() * (self.x1 - self.hn);
            let x = self.inverse(u);
            let k = x.round().clamp(1.0, self.n);
            if k - x <= self.s || u >= self.integral(k + 0.5) - k.powf(-self.theta) {
                return k as u64 - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_follow_the_law() {
        for theta in [0.0, 0.5, 1.0, 1.1, 2.0] {
            let n = 1000;
            let z = Zipf::new(n, theta);
            let mut rng = Rng::with_seed(3);
            let draws = 400_000;
            let mut seen = vec![0u64; n as usize];
            for _ in 0..draws {
                seen[z.draw(&mut rng) as usize] += 1;
            }
            let total: f64 = (1..=n).map(|k| (k as f64).powf(-theta)).sum();
            for k in [0usize, 1, 2, 9, 99] {
                let want = ((k + 1) as f64).powf(-theta) / total * f64::from(draws);
                let sigma = want.sqrt().max(1.0);
                assert!(
                    (seen[k] as f64 - want).abs() < 6.0 * sigma,
                    "{theta} {k}: {} {want}",
                    seen[k]
                );
            }
        }
    }
}
