// SPDX-License-Identifier: GPL-2.0-only

//! What to copy into the region, and in what order, before T0 and after it.
//!
//! Pure decisions about one area at a time. The rules are those of the study: what is dirty and
//! cold is copied early and stays valid; what is dirty and hot is copied in the last moments before
//! a known T0 and then mirrored; with a known T0 the start may be as late as the bandwidth allows;
//! what is so hot that following its writes would cost more than a guard is left alone until the
//! last instant, the *sprint*;
//! what is clean is copied only for scope `image`, in the last seconds, above a threshold, because
//! most such copies are wasted. All else is left to the guard and the drain.

use crate::fixed::Prob;

/// Clean areas are staged in this time before T0 only.
pub const CLEAN_WINDOW_NS: u64 = 5_000_000_000;

/// The last window is at most so many leads long.
pub const LONGEST_LEAD: u64 = 4;
/// The sprint, in which even the hottest are copied, is this part of the lead.
const SPRINT_PART: u64 = 8;

/// When hot blocks are mirrored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Mirror {
    /// In the lead window before a known T0.
    #[default]
    Auto = 0,
    /// Never.
    Off = 1,
    /// Whenever something is staged.
    Force = 2,
}

impl Mirror {
    /// The name that is used in sysfs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::Force => "force",
        }
    }

    /// Returns the mode of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Auto, Self::Off, Self::Force].into_iter().find(|m| m.name() == name)
    }
}

/// The blocks of an area, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AreaView {
    /// Written in this generation.
    pub dirty: u16,
    /// Staged, and the copy is what the origin holds (fresh or mirrored).
    pub valid: u16,
    /// Staged, and overwritten since.
    pub stale: u16,
    /// The scope is `image`: clean blocks will be guarded too.
    pub preserved_needed_clean: bool,
}

impl AreaView {
    /// Dirty blocks without a valid copy.
    pub const fn unstaged(&self) -> u16 {
        self.dirty & !self.valid
    }

    /// Clean blocks without a valid copy.
    pub const fn unstaged_clean(&self) -> u16 {
        !self.dirty & !self.valid
    }
}

/// What the decision depends on besides the area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Time to T0, if it is known.
    pub time_to_t0_ns: Option<u64>,
    /// What the copier may move, 0 if there is no limit.
    pub bandwidth_blocks_per_s: u64,
    /// Dirty blocks of the whole device without a valid copy.
    pub remaining_dirty_blocks: u64,
    /// Dirty blocks are staged early if they are written before T0 with less than this.
    pub threshold: Prob,
    /// Clean blocks are staged if they are written after T0 with more than this.
    pub guard_threshold: Prob,
    /// The least length of the last window before T0, in which hot blocks are staged.
    pub lead_ns: u64,
    /// Snapshots preserve whole images.
    pub scope_image: bool,
    /// Mirroring.
    pub mirror: Mirror,
    /// Horizon of "before T0" if T0 is not known.
    pub default_horizon_ns: u64,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            time_to_t0_ns: None,
            bandwidth_blocks_per_s: 0,
            remaining_dirty_blocks: 0,
            threshold: Prob::from_permille(150),
            guard_threshold: Prob::from_permille(300),
            lead_ns: 1_000_000_000,
            scope_image: false,
            mirror: Mirror::Auto,
            default_horizon_ns: 30_000_000_000,
        }
    }
}

impl Context {
    /// The horizon of `p_before`: how long a copy made now has to stay valid.
    pub fn horizon_before_ns(&self) -> u64 {
        self.time_to_t0_ns.unwrap_or(self.default_horizon_ns)
    }

    /// How long before T0 copying everything has to begin: 1.4 times what the bandwidth needs for
    /// the remaining dirty blocks, and at least the lead.
    pub fn late_start_ns(&self) -> u64 {
        let needed_ns = self
            .remaining_dirty_blocks
            .saturating_mul(1_400_000_000)
            .checked_div(self.bandwidth_blocks_per_s)
            .unwrap_or(0);
        needed_ns.max(self.lead_ns)
    }

    /// Whether T0 is so near that following every write costs little.
    pub fn in_sprint(&self) -> bool {
        self.time_to_t0_ns.is_some_and(|left| left <= self.lead_ns / SPRINT_PART)
    }

    /// The last window before T0, in which hot blocks are copied too: the lead, or up to
    /// [`LONGEST_LEAD`] times that where the bandwidth asks for it.
    pub fn last_window_ns(&self) -> u64 {
        self.late_start_ns().min(self.lead_ns.saturating_mul(LONGEST_LEAD))
    }
}

/// What to do with an area. Blocks are a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decision {
    /// Nothing now.
    #[default]
    None,
    /// Copy these dirty blocks.
    Stage {
        /// The blocks.
        mask: u16,
    },
    /// Copy these dirty blocks and keep the copies in step with the origin until T0.
    StageMirrored {
        /// The blocks.
        mask: u16,
    },
    /// Copy these clean blocks, to spare the guard.
    StageClean {
        /// The blocks.
        mask: u16,
    },
}

impl Decision {
    /// The blocks to be copied.
    pub const fn mask(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Stage { mask } | Self::StageMirrored { mask } | Self::StageClean { mask } => mask,
        }
    }
}

/// A decision and what it is worth per block copied; larger comes first, `None` is worth 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ranked {
    /// What to do.
    pub decision: Decision,
    /// What it is worth.
    pub value: u32,
}

/// Decides about an area.
///
/// `p_before` is the probability of a write before T0 (horizon [`Context::horizon_before_ns`]),
/// `p_after` that of a write in the window after it.
pub fn decide(view: &AreaView, p_before: Prob, p_after: Prob, ctx: &Context) -> Ranked {
    let dirty = decide_dirty(view, p_before, p_after, ctx);
    if dirty.decision == Decision::None {
        decide_clean(view, p_before, p_after, ctx)
    } else {
        dirty
    }
}

fn decide_dirty(view: &AreaView, p_before: Prob, p_after: Prob, ctx: &Context) -> Ranked {
    let in_lead = ctx.time_to_t0_ns.is_some_and(|left| left <= ctx.last_window_ns());
    let mut mask = view.unstaged();
    if in_lead && ctx.mirror == Mirror::Auto && !ctx.in_sprint() {
        // What was mirrored and went stale has shown how hot it is: it waits for the sprint.
        mask &= !view.stale;
    }
    if mask == 0 {
        return Ranked::default();
    }
    // Blocks that have gone stale have cost a copy already: ask twice as much before another early
    // one, or a misjudged area is copied again and again.
    let again = mask & view.stale == mask;
    let threshold = if again { Prob(ctx.threshold.0 / 2) } else { ctx.threshold };
    let cold = p_before < threshold;
    let started = ctx.time_to_t0_ns.is_some_and(|left| left <= ctx.late_start_ns());
    // Before the lead window, what is more likely than not to be written again can wait.
    let now = cold || in_lead || (started && p_before < Prob::HALF);
    if !now {
        return Ranked::default();
    }
    let mirrored = match ctx.mirror {
        Mirror::Off => false,
        Mirror::Force => true,
        // A mirror costs nothing until its block is written, and then it saves the copy.
        Mirror::Auto => in_lead,
    };
    let decision =
        if mirrored { Decision::StageMirrored { mask } } else { Decision::Stage { mask } };
    // A mirrored copy stays valid whatever is written.
    let valid = if mirrored { Prob::ONE } else { p_before.complement() };
    let value = if started {
        // Coldest first; everything is to be copied, the order is all that matters.
        order(p_before.complement(), p_after, mask)
    } else {
        order(valid, p_after, mask)
    };
    Ranked { decision, value: value.saturating_add(DIRTY_FIRST) }
}

fn decide_clean(view: &AreaView, p_before: Prob, p_after: Prob, ctx: &Context) -> Ranked {
    let mask = view.unstaged_clean();
    let soon = ctx.time_to_t0_ns.is_some_and(|left| left <= CLEAN_WINDOW_NS);
    let wanted = ctx.scope_image && view.preserved_needed_clean;
    if mask == 0 || !soon || !wanted || p_after <= ctx.guard_threshold {
        return Ranked::default();
    }
    // Worth what it spares: a write after T0 to a block that stayed as it was until then.
    let value = u32::from(p_after.and(p_before.complement()).0).max(1);
    Ranked { decision: Decision::StageClean { mask }, value }
}

/// A copy of a dirty block saves a copy for certain, one of a clean block only perhaps.
const DIRTY_FIRST: u32 = 1 << 17;

/// The worth of a dirty area: what stays valid first, of the same what the guard would meet, of the
/// same what moves more blocks in one copy.
fn order(valid: Prob, p_after: Prob, mask: u16) -> u32 {
    // 12 bits of validity, 8 of guard, 4 of length: below 2^24, above DIRTY_FIRST's single bit.
    let length = mask.count_ones().min(15);
    (u32::from(valid.0) >> 4) << 12 | (u32::from(p_after.0) >> 8) << 4 | length
}

/// The order in which the drain after T0 copies what is left: most likely overwritten first, to be
/// there before the writer; of the same, longer runs first. Larger comes first.
pub fn drain_value(p_after: Prob, blocks: u32) -> u32 {
    u32::from(p_after.0) << 8 | blocks.min(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn p(permille: u32) -> Prob {
        Prob::from_permille(permille)
    }

    fn dirty(mask: u16) -> AreaView {
        AreaView { dirty: mask, ..AreaView::default() }
    }

    fn known(seconds: u64) -> Context {
        Context { time_to_t0_ns: Some(seconds * S), ..Context::default() }
    }

    #[test]
    fn nothing_to_do() {
        let ctx = known(0);
        assert_eq!(decide(&AreaView::default(), p(0), p(1000), &ctx), Ranked::default());
        let staged = AreaView { dirty: 7, valid: 7, ..AreaView::default() };
        assert_eq!(decide(&staged, p(0), p(1000), &ctx), Ranked::default());
    }

    #[test]
    fn cold_is_staged_early_and_hot_waits() {
        for ctx in [Context::default(), known(60)] {
            assert_eq!(
                decide(&dirty(0b111), p(50), p(0), &ctx).decision,
                Decision::Stage { mask: 0b111 }
            );
            assert_eq!(decide(&dirty(0b111), p(200), p(0), &ctx).decision, Decision::None);
        }
        let half = AreaView { dirty: 0b1111, valid: 0b0011, stale: 0b0100, ..AreaView::default() };
        assert_eq!(
            decide(&half, p(50), p(0), &known(60)).decision,
            Decision::Stage { mask: 0b1100 }
        );
    }

    #[test]
    fn a_stale_area_must_be_colder() {
        let view = AreaView { dirty: 3, stale: 3, ..AreaView::default() };
        assert_eq!(decide(&view, p(100), p(0), &known(60)).decision, Decision::None);
        assert_eq!(decide(&view, p(50), p(0), &known(60)).decision, Decision::Stage { mask: 3 });
    }

    #[test]
    fn late_start_takes_the_lukewarm_and_the_lead_the_hot() {
        // 10 s of copying remain: start 14 s before T0.
        let ctx =
            Context { bandwidth_blocks_per_s: 100, remaining_dirty_blocks: 1000, ..known(14) };
        assert_eq!(ctx.late_start_ns(), 14 * S);
        let lukewarm = decide(&dirty(1), p(300), p(0), &ctx);
        let cold = decide(&dirty(1), p(100), p(0), &ctx);
        assert_eq!(lukewarm.decision, Decision::Stage { mask: 1 });
        assert!(cold.value > lukewarm.value);
        assert_eq!(decide(&dirty(1), p(800), p(0), &ctx).decision, Decision::None);
        let before = Context { time_to_t0_ns: Some(15 * S), ..ctx };
        assert_eq!(decide(&dirty(1), p(300), p(0), &before).decision, Decision::None);
        let lead = Context { time_to_t0_ns: Some(S), ..ctx };
        assert_eq!(
            decide(&dirty(1), p(800), p(0), &lead).decision,
            Decision::StageMirrored { mask: 1 }
        );
        // In the lead the cold are mirrored, too: that costs nothing unless they are written.
        assert_eq!(
            decide(&dirty(1), p(100), p(0), &lead).decision,
            Decision::StageMirrored { mask: 1 }
        );
        // What was mirrored and went stale waits for the sprint.
        let stale = AreaView { stale: 1, ..dirty(1) };
        assert_eq!(decide(&stale, p(800), p(0), &lead).decision, Decision::None);
        let sprint = Context { time_to_t0_ns: Some(lead.lead_ns / SPRINT_PART), ..lead };
        assert_eq!(
            decide(&stale, p(800), p(0), &sprint).decision,
            Decision::StageMirrored { mask: 1 }
        );
        let unmirrored = Context { mirror: Mirror::Off, ..lead };
        assert_eq!(
            decide(&dirty(1), p(800), p(0), &unmirrored).decision,
            Decision::Stage { mask: 1 }
        );
        let forced = Context { mirror: Mirror::Force, ..known(60) };
        assert_eq!(
            decide(&dirty(1), p(10), p(0), &forced).decision,
            Decision::StageMirrored { mask: 1 }
        );
    }

    #[test]
    fn clean_only_for_images_soon_and_likely() {
        let view = AreaView { preserved_needed_clean: true, ..dirty(0) };
        let ctx = Context { scope_image: true, ..known(5) };
        let clean = decide(&view, p(0), p(400), &ctx);
        assert_eq!(clean.decision, Decision::StageClean { mask: 0xffff });
        assert!(clean.value > 0);
        assert!(decide(&dirty(1), p(100), p(0), &ctx).value > clean.value, "dirty comes first");
        assert_eq!(decide(&view, p(0), p(300), &ctx).decision, Decision::None);
        for not in [
            Context { scope_image: false, ..ctx },
            Context { time_to_t0_ns: None, ..ctx },
            Context { time_to_t0_ns: Some(6 * S), ..ctx },
        ] {
            assert_eq!(decide(&view, p(0), p(900), &not).decision, Decision::None);
        }
        assert_eq!(decide(&dirty(0), p(0), p(900), &ctx).decision, Decision::None);
        // What is left clean around dirty blocks comes after them.
        let mixed = AreaView { dirty: 0xff, valid: 0xff, ..view };
        assert_eq!(decide(&mixed, p(0), p(900), &ctx).decision.mask(), 0xff00);
    }

    #[test]
    fn every_dirty_value_is_above_every_clean_one() {
        let ctx = Context { scope_image: true, ..known(0) };
        let worst = decide(&dirty(1), p(1000), p(0), &Context { mirror: Mirror::Off, ..ctx });
        let view = AreaView { preserved_needed_clean: true, ..dirty(0) };
        assert!(worst.value > decide(&view, p(0), p(1000), &ctx).value);
    }

    #[test]
    fn no_limit_needs_no_time() {
        let ctx = Context { remaining_dirty_blocks: u64::MAX, ..Context::default() };
        assert_eq!(ctx.late_start_ns(), ctx.lead_ns);
        let ctx = Context { bandwidth_blocks_per_s: 1, ..ctx };
        assert_eq!(ctx.late_start_ns(), u64::MAX);
        assert_eq!(ctx.horizon_before_ns(), 30 * S);
    }

    #[test]
    fn the_drain_races_the_writer() {
        assert!(drain_value(p(500), 1) > drain_value(p(400), 256));
        assert!(drain_value(p(500), 16) > drain_value(p(500), 1));
        drain_value(Prob::ONE, u32::MAX);
    }

    #[test]
    fn mirror_names() {
        for m in [Mirror::Auto, Mirror::Off, Mirror::Force] {
            assert_eq!(Mirror::from_name(m.name()), Some(m));
        }
        assert_eq!(Mirror::from_name(""), None);
    }
}
