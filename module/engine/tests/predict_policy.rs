// SPDX-License-Identifier: GPL-2.0-only

//! Properties of the staging decisions and of the throttle.

use presnap_engine::fixed::Prob;
use presnap_engine::policy::{decide, AreaView, Context, Decision, Mirror};
use presnap_engine::throttle::{Throttle, ThrottleConfig};
use proptest::prelude::*;

fn prob() -> impl Strategy<Value = Prob> {
    any::<u16>().prop_map(Prob)
}

fn context() -> impl Strategy<Value = Context> {
    let time = prop_oneof![Just(0u64), 0..20_000_000_000u64, any::<u64>()];
    let mirror = prop::sample::select(vec![Mirror::Auto, Mirror::Off, Mirror::Force]);
    (
        (prop::option::of(time.clone()), any::<u64>(), any::<u64>(), prob(), prob()),
        (time.clone(), any::<bool>(), mirror, time),
    )
        .prop_map(
            |((t0, bandwidth, remaining, threshold, guard), (lead, image, mirror, horizon))| {
                Context {
                    time_to_t0_ns: t0,
                    bandwidth_blocks_per_s: bandwidth,
                    remaining_dirty_blocks: remaining,
                    threshold,
                    guard_threshold: guard,
                    lead_ns: lead,
                    scope_image: image,
                    mirror,
                    default_horizon_ns: horizon,
                }
            },
        )
}

fn view() -> impl Strategy<Value = AreaView> {
    (any::<u16>(), any::<u16>(), any::<u16>(), any::<bool>()).prop_map(
        |(dirty, valid, stale, preserved_needed_clean)| AreaView {
            dirty,
            valid,
            stale,
            preserved_needed_clean,
        },
    )
}

proptest! {
    #[test]
    fn decisions_are_sound(view in view(), before in prob(), after in prob(), ctx in context()) {
        let ranked = decide(&view, before, after, &ctx);
        let mask = ranked.decision.mask();
        prop_assert_eq!(mask & view.valid, 0, "what is valid is not copied again");
        match ranked.decision {
            Decision::None => prop_assert_eq!(ranked.value, 0),
            Decision::Stage { .. } | Decision::StageMirrored { .. } => {
                prop_assert!(mask != 0 && mask & !view.dirty == 0);
                prop_assert!(ranked.value > 0);
            }
            Decision::StageClean { .. } => {
                prop_assert!(mask != 0 && mask & view.dirty == 0);
                prop_assert!(ctx.scope_image && view.preserved_needed_clean);
                prop_assert!(after > ctx.guard_threshold);
            }
        }
        if ctx.mirror == Mirror::Off {
            let mirrored = matches!(ranked.decision, Decision::StageMirrored { .. });
            prop_assert!(!mirrored);
        }
        // In the last window before a known T0 every dirty block is taken; with mirrors, those that
        // went stale in the sprint only.
        if ctx.time_to_t0_ns.is_some_and(|t| t <= ctx.lead_ns) {
            let wait = ctx.mirror == Mirror::Auto && !ctx.in_sprint();
            let wanted = view.unstaged() & if wait { !view.stale } else { u16::MAX };
            if wanted != 0 {
                prop_assert_eq!(mask, wanted);
            } else if !matches!(ranked.decision, Decision::StageClean { .. }) {
                prop_assert_eq!(mask, 0);
            }
        }
    }

    #[test]
    fn colder_is_never_worth_less(view in view(), a in prob(), b in prob(), after in prob(), ctx in context()) {
        prop_assume!(ctx.mirror != Mirror::Force && view.unstaged() != 0);
        let (cold, hot) = (a.min(b), a.max(b));
        let (cold, hot) = (decide(&view, cold, after, &ctx), decide(&view, hot, after, &ctx));
        let clean = |r: &Decision| matches!(r, Decision::StageClean { .. });
        if !clean(&hot.decision) {
            prop_assert!(cold.value >= hot.value);
        }
    }

    #[test]
    fn no_more_than_earned(
        config in (1..10_000u32, 0..60u32, 0..8u32),
        steps in prop::collection::vec((0..3_000_000_000u64, 0..3u32, 0..100_000u32), 1..100),
    ) {
        let (blocks_per_s, burst_s, idle_factor) = config;
        let mut throttle = Throttle::new(ThrottleConfig { blocks_per_s, burst_s, idle_factor });
        throttle.earn(0, 1);
        let (mut now, mut taken) = (0u64, 0u64);
        for (dt, inflight, want) in steps {
            now += dt;
            throttle.earn(now, inflight);
            let got = throttle.take(want);
            prop_assert!(got <= want);
            taken += u64::from(got);
            let most = u64::from(blocks_per_s) * u64::from(idle_factor.max(1)) * now / 1_000_000_000;
            prop_assert!(taken <= most);
        }
    }
}
