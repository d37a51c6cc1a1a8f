//! Fingerprints of all drawn sequences, for comparison with those that the C++ programs draw.

use super::plan::{self, RandomAllocations};
use crate::workload::Churn;

/// Names and fingerprints, a line each.
pub fn lines() -> String {
    let mut lines = String::new();
    let mut add = |name: String, numbers: &mut dyn Iterator<Item = u64>| {
        lines.push_str(&format!("{name} {:016x}\n", fingerprint(numbers)));
    };
    add("churn".to_owned(), &mut of_churn(&plan::churn()));
    for number in [0, 15] {
        add(format!("thread {number}"), &mut of_churn(&plan::of_thread(number)));
        add(format!("array {number}"), &mut of_churn(&plan::of_array(number)));
        add(format!("producer {number}"), &mut plan::of_producer(number).into_iter());
        add(format!("xmalloc {number}"), &mut plan::of_xmalloc_producer(number).into_iter());
    }
    for most_mib in [1, 4, 64, 1024] {
        let plan = RandomAllocations::new(most_mib, 20_000);
        let steps = plan.steps.iter().flat_map(|step| [u64::from(step.slot), u64::from(step.bytes)]);
        add(format!("random {most_mib}"), &mut steps.chain([u64::from(plan.slots), plan.peak_live]));
    }
    lines
}

fn of_churn(churn: &Churn) -> impl Iterator<Item = u64> {
    let steps = churn.steps.iter().flat_map(|&(at, bytes)| [u64::from(at), bytes]);
    churn.initial.iter().copied().chain(steps).chain([plan::peak_of(churn)])
}

/// FNV-1a over whole numbers.
fn fingerprint(numbers: &mut dyn Iterator<Item = u64>) -> u64 {
    numbers.fold(0xcbf2_9ce4_8422_2325, |hash, number| (hash ^ number).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results of different days compare only as long as this stays as it is.
    const DRAWN: &str = "\
        churn 7b0a3167f23bc936\n\
        thread 0 32b4d5fc5a7fdc19\n\
        array 0 e66c3cfdf16eba40\n\
        producer 0 4ff2f1f5cf146eea\n\
        xmalloc 0 0b0d57aff8000583\n\
        thread 15 ffa57f467d8fa561\n\
        array 15 b9aaab503ba79b1e\n\
        producer 15 6c26979f3fedf2bb\n\
        xmalloc 15 58bbbbb6dd7bcc87\n\
        random 1 c534bb3140da6d53\n\
        random 4 793d27943ee20e37\n\
        random 64 ca5afe9ec1ce7a89\n\
        random 1024 c80ac7b0e2d641ba\n";

    #[test]
    fn the_sequences_are_those_that_were_always_drawn() {
        assert_eq!(lines(), DRAWN);
    }
}
