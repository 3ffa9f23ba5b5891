#![allow(clippy::unwrap_used)]
mod small;
use lorakit_route::merge::*;
use small::*;
#[test]
fn time() {
    let names: Vec<String> = (0..4).map(|i| format!("e{i}")).collect();
    let ex: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(i, n)| {
            expert(
                n,
                [
                    ("a", random(i as u64 * 7 + 1, 16, 2560, 2560, 0.1)),
                    ("b", random(i as u64 * 7 + 3, 16, 2560, 10240, 0.1)),
                ],
            )
        })
        .collect();
    for t in [
        "cat",
        "svd:rank=16",
        "ties_svd",
        "ties_svd:convention=paper",
        "dare_ties_svd",
        "ties:convention=mergekit,density=0.2",
        "core_space",
        "knots",
        "wudi",
        "ties",
    ] {
        let start = std::time::Instant::now();
        let m: Merge = t.parse().unwrap();
        let r = m.apply(&ex, &Coefficients::ones(4)).unwrap();
        println!("{t}: {:.2}s {:?}", start.elapsed().as_secs_f64(), r.report[1]);
    }
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", s.lines().find(|l| l.starts_with("VmHWM")).unwrap());
}
