//! llama.cpp's names of a base's tensors, by the names of Hugging Face's model. They follow from the descriptor: what a
//! projection writes, and where a norm stands.

use crate::architecture::base_config::BaseConfig;
use crate::architecture::descriptor::{BlockDescriptor, Descriptor, Features};
use crate::layer::norm::NormKind;

/// A tensor by both names, and how its values differ in the two forms.
#[derive(Clone, Debug)]
pub(crate) struct GgufTensorName {
    /// Its name in Hugging Face's model.
    pub(crate) hugging_face: String,
    /// Its name in llama.cpp.
    pub(crate) llama_cpp: String,
    /// Whether its rows are queries or keys, which are rotated.
    pub(crate) rotated: bool,
    /// Whether llama.cpp has one added to its values: its norms multiply by what is stored.
    pub(crate) plus_one: bool,
}

/// Every tensor that a base of this config may have.
pub(crate) fn tensor_names(config: &BaseConfig) -> Vec<GgufTensorName> {
    let descriptor = &config.descriptor;
    let plus_one = descriptor.norm == NormKind::RmsPlusOne;
    let mut names = Vec::new();
    let mut add = |module: &str, part: &str, kind: Kind| {
        for suffix in ["weight", "bias"] {
            names.push(GgufTensorName {
                hugging_face: format!("{module}.{suffix}"),
                llama_cpp: format!("{part}.{suffix}"),
                rotated: kind == Kind::Rotated,
                plus_one: plus_one && kind == Kind::Norm && suffix == "weight",
            });
        }
    };
    add(descriptor.embedding, "token_embd", Kind::Plain);
    add(descriptor.final_norm, "output_norm", Kind::Norm);
    add(descriptor.lm_head, "output", Kind::Plain);
    let parts = layer_parts(descriptor);
    for layer in 0..config.layers {
        for (module, part, kind) in &parts {
            add(&format!("{}.{layer}.{module}", descriptor.layers), &format!("blk.{layer}.{part}"), *kind);
        }
    }
    names
}

/// What a tensor is, as far as its values differ in the two forms.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// Queries or keys.
    Rotated,
    Norm,
}

/// The modules of a layer with llama.cpp's names.
fn layer_parts(descriptor: &Descriptor) -> Vec<(&'static str, &'static str, Kind)> {
    let mut parts = Vec::new();
    for projection in descriptor.attention_input.projections {
        let (part, kind) = match projection.outputs {
            [Features::Queries] => ("attn_q", Kind::Rotated),
            [Features::Keys] => ("attn_k", Kind::Rotated),
            [Features::Values] => ("attn_v", Kind::Plain),
            _ => ("attn_qkv", Kind::Plain),
        };
        parts.push((projection.module, part, kind));
    }
    // Where gate and up are one, or there is no gate, the name is that of up.
    let inner: &[&str] = if descriptor.mlp_input.projections.len() > 1 { &["ffn_gate", "ffn_up"] } else { &["ffn_up"] };
    for (site, names) in [
        (&descriptor.attention_output, &["attn_output"][..]),
        (&descriptor.mlp_input, inner),
        (&descriptor.mlp_output, &["ffn_down"]),
    ] {
        parts.extend(
            site.projections.iter().zip(names).map(|(projection, part)| (projection.module, *part, Kind::Plain)),
        );
    }
    parts.extend(norms(descriptor).into_iter().filter_map(|(module, part)| Some((module?, part, Kind::Norm))));
    parts
}

/// The norms of a layer with llama.cpp's names.
fn norms(descriptor: &Descriptor) -> Vec<(Option<&'static str>, &'static str)> {
    let mut norms = match descriptor.block {
        BlockDescriptor::Sequential { attention, mlp } => vec![
            (attention.before, "attn_norm"),
            (attention.after, "post_attention_norm"),
            (mlp.before, "ffn_norm"),
            (mlp.after, "post_ffw_norm"),
        ],
        BlockDescriptor::Parallel { norm } => vec![(Some(norm), "attn_norm")],
    };
    let of_heads = descriptor.qk_norm.map(|norms| [(norms.queries, "attn_q_norm"), (norms.keys, "attn_k_norm")]);
    norms.extend(of_heads.into_iter().flatten().map(|(module, part)| (Some(module), part)));
    norms
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::architecture::registry::ARCHITECTURES;

    #[test]
    fn names_are_those_of_llama_cpp() {
        let parts = |model_type: &str| {
            let known = ARCHITECTURES.iter().find(|known| known.model_type == model_type).unwrap();
            let mut parts = layer_parts(&known.descriptor);
            parts.sort_by_key(|(_, part, _)| *part);
            parts.into_iter().map(|(module, part, _)| format!("{part}={module}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            parts("llama"),
            "attn_k=self_attn.k_proj attn_norm=input_layernorm attn_output=self_attn.o_proj attn_q=self_attn.q_proj \
             attn_v=self_attn.v_proj ffn_down=mlp.down_proj ffn_gate=mlp.gate_proj ffn_norm=post_attention_layernorm \
             ffn_up=mlp.up_proj"
        );
        assert_eq!(
            parts("phi3"),
            "attn_norm=input_layernorm attn_output=self_attn.o_proj attn_qkv=self_attn.qkv_proj ffn_down=mlp.down_proj \
             ffn_norm=post_attention_layernorm ffn_up=mlp.gate_up_proj"
        );
        assert_eq!(
            parts("gemma3_text"),
            "attn_k=self_attn.k_proj attn_k_norm=self_attn.k_norm attn_norm=input_layernorm \
             attn_output=self_attn.o_proj attn_q=self_attn.q_proj attn_q_norm=self_attn.q_norm attn_v=self_attn.v_proj \
             ffn_down=mlp.down_proj ffn_gate=mlp.gate_proj ffn_norm=pre_feedforward_layernorm ffn_up=mlp.up_proj \
             post_attention_norm=post_attention_layernorm post_ffw_norm=post_feedforward_layernorm"
        );
    }
}
