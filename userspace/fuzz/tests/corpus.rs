// SPDX-License-Identifier: GPL-2.0-only

//! Every target takes its seeds, its corpus (what was found once is in it), and some changes of each.

use std::path::Path;

use presnap_fuzz::TARGETS;

#[test]
fn seeds_and_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in TARGETS {
        let mut inputs = (target.seeds)();
        assert!(
            !inputs.is_empty() && inputs.iter().all(|i| i.len() <= target.longest),
            "{}",
            target.name
        );
        let dir = corpus.join(target.name);
        let files = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        inputs.extend(files.map(|f| std::fs::read(f.expect("a file").path()).expect("read")));
        let mut rng = fastrand::Rng::with_seed(1);
        for input in &inputs {
            (target.run)(input);
            for _ in 0..4 {
                let mut other = input.clone();
                for _ in 0..rng.usize(1..4) {
                    if let Some(place) = rng.usize(..).checked_rem(other.len()) {
                        other[place] =
                            if rng.bool() { rng.u8(..) } else { other[place] ^ 1 << rng.u8(..8) };
                    }
                }
                if rng.u8(..8) == 0 {
                    other.truncate(rng.usize(..=other.len()));
                }
                (target.run)(&other);
            }
        }
        println!("{}: {} inputs", target.name, inputs.len());
    }
}
