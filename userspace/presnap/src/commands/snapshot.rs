// SPDX-License-Identifier: GPL-2.0-only

//! `presnap snapshot`: takes a snapshot and waits until it is sealed.

use std::time::Duration;

use anyhow::{bail, Context, Result};
use serde_json::{json, Map, Value};

use super::open::Scope;
use crate::dm::Dm;
use crate::output::{self, Progress};
use crate::source::Source;
use crate::units;

/// Take a snapshot
///
/// Returns when the snapshot is sealed, that is when its delta is whole and durable in the region, and prints its id
/// (and statistics on a terminal). Writers are held only for the freeze, which is at most --freeze-budget plus the time
/// that the writes in flight take.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The device
    #[arg(value_name = "DEV")]
    device: String,
    /// How long overwrites are guarded; default: the device's setting
    #[arg(long, value_enum)]
    scope: Option<Scope>,
    /// Let the device choose the instant within this time (5s, 500ms), so that it can copy ahead
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    within: Option<Duration>,
    /// Microseconds of copying while writers are held, or `unlimited`; default: the device's setting
    #[arg(long, value_name = "US", value_parser = budget)]
    freeze_budget: Option<String>,
    /// Print the id as soon as the snapshot is accepted, do not wait for it
    #[arg(long)]
    no_wait: bool,
    /// Give up waiting after this time (the snapshot goes on)
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    timeout: Option<Duration>,
    /// Print id and statistics as JSON
    #[arg(long)]
    json: bool,
}

fn budget(text: &str) -> Result<String, String> {
    if text == "unlimited" || text.parse::<u32>().is_ok() {
        Ok(text.into())
    } else {
        Err("a number of microseconds or `unlimited` is needed".into())
    }
}

/// The answer to the message `state`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct State {
    /// The word: `pending`, `draining`, `sealed`, `dropped`...
    pub(crate) state: String,
    /// Why it was dropped.
    pub(crate) reason: Option<String>,
    /// The statistics.
    pub(crate) values: Map<String, Value>,
}

impl State {
    /// Asks a device for the state of a snapshot.
    pub(crate) fn ask(dm: &Dm, id: u32) -> Result<Self> {
        let text = dm.message(&["state", &id.to_string()])?;
        Self::parse(&text, id).with_context(|| format!("cannot understand the state: {text}"))
    }

    fn parse(text: &str, id: u32) -> Option<Self> {
        let (number, rest) = text.trim().split_once(' ')?;
        if number.parse() != Ok(id) {
            return None;
        }
        if let Some(reason) = rest.strip_prefix("dropped:") {
            let reason = Some(reason.trim().to_string());
            return Some(Self { state: "dropped".into(), reason, values: Map::new() });
        }
        let mut words = rest.split_whitespace();
        let state = words.next()?.to_string();
        let mut values = Map::new();
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            let value = value.parse::<u64>().map_or_else(|_| Value::from(value), Value::from);
            values.insert(key.into(), value);
        }
        Some(Self { state, reason: None, values })
    }

    fn get(&self, key: &str) -> u64 {
        self.values.get(key).and_then(Value::as_u64).unwrap_or(0)
    }

    /// Statistics in words, a line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        let copied = |key: &str| units::blocks(self.get(key));
        vec![
            format!(
                "freeze {} (of it waiting for writes in flight {}), sealed after {}",
                units::ns(self.get("freeze_us") * 1000),
                units::ns(self.get("inflight_wait_us") * 1000),
                units::ns(self.get("seal_us") * 1000)
            ),
            format!(
                "delta {}: staged before T0 and valid {}, copied in the freeze {}, guarded {}, drained {}",
                copied("delta_blocks"),
                copied("staged_valid_blocks"),
                copied("final_copy_blocks"),
                copied("guarded_blocks"),
                copied("drained_blocks")
            ),
            format!(
                "copied in all {}, stale {}, wasted {}, writes that waited for a copy: {}",
                copied("copied_blocks_total"),
                copied("stale_blocks"),
                copied("wasted"),
                self.get("guard_stalls")
            ),
        ]
    }
}

impl Args {
    /// Takes one.
    pub(crate) fn run(self) -> Result<()> {
        let (dm, _) = Source::live(&self.device)?;
        let mut words: Vec<String> = vec!["snapshot".into()];
        if let Some(scope) = self.scope {
            words.extend(["scope".into(), scope.word().into()]);
        }
        if let Some(within) = self.within {
            words.extend(["within".into(), within.as_millis().to_string()]);
        }
        if let Some(budget) = &self.freeze_budget {
            words.extend(["freeze_budget".into(), budget.clone()]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = dm.message(&words).context("the snapshot was refused")?;
        let id = answer.split_whitespace().next().and_then(|w| w.parse::<u32>().ok());
        let id = id.with_context(|| format!("the device answered no id: {answer:?}"))?;
        if self.no_wait {
            if self.json {
                return output::json(&json!({ "id": id, "state": "pending" }));
            }
            println!("{id}");
            return Ok(());
        }
        let state = self.wait(&dm, id)?;
        if self.json {
            let mut object = Map::new();
            object.insert("id".into(), id.into());
            object.insert("state".into(), state.state.as_str().into());
            object.extend(state.values);
            return output::json(&object);
        }
        println!("{id}");
        if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
            state.lines().iter().for_each(|l| println!("  {l}"));
        }
        Ok(())
    }

    fn wait(&self, dm: &Dm, id: u32) -> Result<State> {
        let mut progress = Progress::new(false);
        loop {
            let state = State::ask(dm, id)?;
            match state.state.as_str() {
                "sealed" => return Ok(state),
                "dropped" => {
                    let reason = state.reason.unwrap_or_else(|| "no reason given".into());
                    bail!("snapshot {id} was dropped: {}", explain(&reason));
                }
                "unknown" => bail!("snapshot {id} is gone"),
                _ => {}
            }
            if self.timeout.is_some_and(|t| progress.elapsed() > t) {
                bail!("snapshot {id} is still {} (it goes on)", state.state);
            }
            progress.show(|| {
                let copied = state.get("delta_blocks");
                format!("snapshot {id}: {} (delta {})", state.state, units::blocks(copied))
            });
            // Often at first, then in step with how long it takes: asking costs the machine time.
            let pause = progress.elapsed() / 4;
            std::thread::sleep(pause.clamp(Duration::from_millis(10), Duration::from_millis(500)));
        }
    }
}

/// Words for the reasons of a drop.
fn explain(reason: &str) -> &str {
    match reason {
        "overflow" => "the region was full (see `presnap list`; `presnap rm` makes room)",
        "io-error" => "the region or the origin gave an I/O error (see the kernel log)",
        "aborted" => "it was aborted",
        "closed" => "the device was closed",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states() {
        let s = State::parse("7 sealed freeze_us=12 delta_blocks=5 kind=x", 7).expect("good");
        assert_eq!((s.state.as_str(), s.get("freeze_us"), s.get("nothing")), ("sealed", 12, 0));
        assert_eq!(s.values.get("kind"), Some(&Value::from("x")));
        let s = State::parse("7 dropped:region full", 7).expect("good");
        assert_eq!((s.state.as_str(), s.reason.as_deref()), ("dropped", Some("region full")));
        for bad in ["", "7", "8 sealed", "x sealed"] {
            assert_eq!(State::parse(bad, 7), None, "{bad}");
        }
    }
}
