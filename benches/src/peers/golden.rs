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
