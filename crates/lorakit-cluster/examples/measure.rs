#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]
use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_cluster::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;
use rayon::prelude::*;

struct R(u64);
impl R {
    fn normal(&mut self) -> f32 {
        let mut s = 0u64;
        for _ in 0..2 {
            self.0 ^= self.0 << 13; self.0 ^= self.0 >> 7; self.0 ^= self.0 << 17;
            s += (self.0 & 0xffff) + ((self.0 >> 16) & 0xffff) + ((self.0 >> 32) & 0xffff) + (self.0 >> 48);
        }
        (s as f32 / 65536.0 - 4.0) * 1.22
    }
}
fn mat(c: u64, e: u64, rows: usize, cols: usize) -> Matrix {
    let mut c = R(c.wrapping_mul(0x9E3779B97F4A7C15) | 1);
    let mut e = R(e.wrapping_mul(0xD1B54A32D192ED03) | 1);
    for _ in 0..20 { c.normal(); e.normal(); }
    Matrix::new(rows, cols, (0..rows * cols).map(|_| 0.01 * (c.normal() + 2.0 * e.normal())).collect()).unwrap()
}
fn rss() -> String {
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    s.lines().filter(|l| l.starts_with("VmHWM") || l.starts_with("RssAnon")).map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let root = Path::new("/tmp/d/lib256");
    let n = 256;
    if args[1] == "make" {
        (0..n).into_par_iter().for_each(|i: usize| {
            let mut m = BTreeMap::new();
            for l in 0..32u64 {
                let (c, e) = ((i % 10) as u64 * 1000 + l * 10 + 7, (i as u64 + 100) * 1000 + l * 10);
                let a = mat(c, e, 4, 2560);
                for (p, name) in ["q_proj", "k_proj", "v_proj"].iter().enumerate() {
                    m.insert(format!("model.layers.{l}.self_attn.{name}"), LowRank::new(a.clone(), mat(c + 100_000 * (p as u64 + 1), e + 1 + p as u64, 2560, 4), 4.0).unwrap());
                }
                m.insert(format!("model.layers.{l}.self_attn.dense"), LowRank::new(mat(c + 500_000, e + 5, 4, 2560), mat(c + 600_000, e + 6, 2560, 4), 4.0).unwrap());
            }
            let dir = root.join(format!("e{i:03}"));
            std::fs::create_dir_all(root).unwrap();
            Adapter::new(m).write(&dir).unwrap();
        });
        return;
    }
    let names: Vec<String> = (0..n).map(|i| format!("e{i:03}")).collect();
    let space = match args[1].as_str() { "parameters" => Space::Parameters, "delta" => Space::Delta, _ => Space::Change };
    let start = Instant::now();
    let experts = Experts::new(names.clone(), |name| Adapter::read(&root.join(name))).unwrap();
    let o = MbcOptions { space, ..MbcOptions::default() };
    let t = Instant::now();
    let e = Embedded::of(&experts, &o).unwrap();
    let t1 = t.elapsed();
    let p = e.partition(10).unwrap();
    let expected: Vec<usize> = (0..n).map(|i| i % 10).collect();
    println!("{space}: embed {t1:.2?}, total {:.2?}, ARI {}, {}", start.elapsed(), adjusted_rand(p.labels(), &expected).unwrap(), rss());
    let bytes: Vec<u8> = e.similarity.rows().flat_map(|r| r.to_vec()).flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(format!("/tmp/d/S_{space}.bin"), bytes).unwrap();
    if let Some(out) = args.get(2) {
        let clusters = Clusters::new(Method::Mbc, &p, |e| vec![e.to_owned()], Default::default());
        let t = Instant::now();
        let spaces = Spaces::of(&experts).unwrap();
        println!("spaces {:.2?}", t.elapsed());
        let t = Instant::now();
        let c = curve(&e, 20).unwrap();
        println!("curve {:.2?}", t.elapsed());
        let r = Report::new(&clusters, &spaces, c).unwrap();
        let t = Instant::now();
        let html = page(&r, spaces.get(Space::Delta).unwrap());
        println!("page {:.2?}, {} bytes", t.elapsed(), html.len());
        std::fs::write(out, html).unwrap();
    }
}
