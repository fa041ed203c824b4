//! What a decision costs the server. Run with
//! `cargo test --features redis --lib server_cpu -- --ignored --nocapture`.

use std::time::Duration;

use super::rig::{Rig, block_on};
use crate::{
    quota::Quota,
    storage::{Charge, Identity, Key, Name, Spend, Storage},
};

#[test]
#[ignore = "a measurement"]
fn server_cpu_per_decision() {
    const CALLS: u32 = 20_000;
    let minute = Duration::from_secs(60);
    let generous = 1_000_000_000;
    block_on(async {
        let mut rig = Rig::on_server_time().await;
        for (name, quota) in [
            ("sliding", Quota::sliding_window(generous, minute)),
            ("sliding, refused", Quota::sliding_window(1, Duration::from_secs(86_400))),
            ("fixed", Quota::fixed_window(generous, minute)),
            ("month", Quota::calendar_month(generous)),
            ("bucket", Quota::token_bucket(generous, minute, generous)),
            ("strict", Quota::strict_window(generous, minute)),
            ("log of 100", Quota::sliding_log(100, Duration::from_secs(86_400))),
        ] {
            let keys: Vec<_> = (0..100)
                .map(|n| {
                    let detail = Name::new(&quota.counter_name());
                    Key::new(&Name::new("api"), &detail, Identity::new(format!("{n}")))
                })
                .collect();
            for key in &keys {
                rig.storage.acquire(&[Charge::new(key, quota, Spend::Take(1))]).await.unwrap();
            }
            let () = rig.run(&[b"CONFIG", b"RESETSTAT"]).await;
            for n in 0..CALLS {
                let key = &keys[n as usize % keys.len()];
                rig.storage.acquire(&[Charge::new(key, quota, Spend::Take(1))]).await.unwrap();
            }
            let info: String = rig.run(&[b"INFO", b"commandstats"]).await;
            let line = info.lines().find(|line| line.contains("evalsha")).unwrap();
            let (_, cost) = line.split_once("usec_per_call=").unwrap();
            println!("{name:20} {} us", cost.split(',').next().unwrap());
        }
    });
}
