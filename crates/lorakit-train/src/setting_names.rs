//! The names of training settings: aliases, and what is suggested for unknown ones.

/// A setting's name here, from any of its aliases.
pub(crate) fn canonical_name(name: &str) -> &str {
    match name {
        "r" => "rank",
        "lora_alpha" => "alpha",
        "lora_dropout" => "dropout",
        "per_device_train_batch_size" => "batch_size",
        "num_train_epochs" => "num_epochs",
        "lr_scheduler_type" => "lr_scheduler",
        other => other,
    }
}

/// The setting of `known` that is meant by an unknown name: under its name in other programs, or misspelled.
pub(crate) fn suggested_name<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let name = name.trim_start_matches('-').replace('-', "_").to_lowercase();
    let elsewhere = match name.as_str() {
        "lr" | "peak_lr" | "max_lr" => Some("learning_rate"),
        "epochs" | "epoch" | "n_epochs" => Some("num_epochs"),
        "steps" | "num_steps" | "max_iters" | "train_steps" => Some("max_steps"),
        "lora_r" | "lora_rank" => Some("rank"),
        "bs" | "batch" | "micro_batch_size" | "train_batch_size" => Some("batch_size"),
        "grad_accum" | "accumulation_steps" | "gradient_accumulation" => Some("gradient_accumulation_steps"),
        "warmup" => Some("warmup_ratio"),
        "scheduler" | "lr_schedule" | "schedule" => Some("lr_scheduler"),
        "wd" => Some("weight_decay"),
        "grad_clip" | "gradient_clipping" | "clip" | "clip_grad_norm" => Some("max_grad_norm"),
        "max_seq_length" | "max_seq_len" | "sequence_len" | "cutoff_len" | "max_len" => Some("max_length"),
        "modules" | "targets" | "lora_target" | "lora_target_modules" => Some("target_modules"),
        _ => None,
    };
    let canonical = canonical_name(&name).to_owned();
    let close = |known: &&str| strsim::osa_distance(&canonical, known) <= 1 + known.len() / 5;
    let nearest = |known: &&str| strsim::osa_distance(&canonical, known);
    elsewhere.or_else(|| known.filter(close).min_by_key(nearest)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_programs_and_misspellings_are_recognized() {
        let known = ["rank", "alpha", "dropout", "learning_rate", "num_epochs", "max_grad_norm"];
        let suggested = |name| suggested_name(name, known.into_iter());
        for (name, expected) in [
            ("lr", "learning_rate"),
            ("epochs", "num_epochs"),
            ("learning-rate", "learning_rate"),
            ("leraning_rate", "learning_rate"),
            ("rnk", "rank"),
            ("rnak", "rank"),
            ("alfa", "alpha"),
            ("max_grad_nrm", "max_grad_norm"),
        ] {
            assert_eq!(suggested(name).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(suggested("optimizer"), None);
    }
}
