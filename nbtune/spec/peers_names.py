"""The names of settings in TRL, transformers, peft, Axolotl, LLaMA-Factory and Unsloth, and what each is called here.

The names are the peers' (their documentation of 2026); what stands beside them is nbtune's own.
"""

from __future__ import annotations

import re


def _table(text: str) -> dict[str, str]:
    """Read blocks: `= what`, perhaps over several lines, and below it, deeper, the names that it stands for."""
    found: dict[str, str] = {}
    for block in filter(str.strip, re.split(r"^ *= ", text, flags=re.MULTILINE)):
        what, *names = re.split(r"^ {8,}", block, flags=re.MULTILINE)
        found.update(dict.fromkeys(" ".join(names).split(), " ".join(what.split())))
    return found


# the same setting under another name: its value means the same
ALIASES = _table(
    """
    = model
        base_model model_name_or_path model_name pretrained_model_name_or_path model_id
    = steps
        max_steps total_steps num_training_steps
    = epochs
        num_train_epochs num_epochs
    = micro_batch_size
        per_device_train_batch_size train_batch_size_per_device per_gpu_train_batch_size
    = gradient_accumulation_steps
        gradient_accumulation grad_accumulation_steps
    = batch_size
        total_batch_size global_batch_size effective_batch_size
    = learning_rate
        lr initial_learning_rate peak_lr
    = lr_scheduler_type
        lr_scheduler scheduler_type
    = warmup_ratio
        warmup_fraction
    = max_grad_norm
        gradient_clipping clip_grad_norm gradient_clip_val grad_clip
    = optim
        optimizer
    = optim_args.beta1
        adam_beta1
    = optim_args.beta2
        adam_beta2
    = optim_args.eps
        adam_epsilon
    = optim_args.lora_b_rate
        loraplus_lr_ratio
    = optim_args.embedding_rate
        embedding_lr_scale
    = optim_args.in_backward
        optimizer_in_bwd optimizer_in_backward
    = schedule.warmup_steps
        warmup_steps num_warmup_steps lr_warmup_steps
    = schedule.floor
        cosine_min_lr_ratio min_lr_rate min_lr_ratio
    = sequence_len
        max_seq_length max_length max_seq_len cutoff_len max_sequence_length sequence_length
    = packing
        sample_packing pack_sequences
    = seed
        random_state random_seed
    = beta
        dpo_beta pref_beta rl_beta kto_beta cpo_beta simpo_beta
    = loss.type
        loss_type pref_loss dpo_loss_type
    = loss.label_smoothing
        dpo_label_smoothing cdpo_label_smoothing cpo_label_smoothing label_smoothing_factor label_smoothing
    = loss.z_loss
        z_loss
    = loss.center_rewards
        center_rewards_coefficient
    = loss.rpo_alpha
        rpo_alpha
    = loss.cpo_alpha
        cpo_alpha
    = loss.gamma
        simpo_gamma
    = loss.desirable_weight
        desirable_weight kto_desirable_weight
    = loss.undesirable_weight
        undesirable_weight kto_undesirable_weight
    = adapter.r
        lora_r lora_rank rank
    = adapter.alpha
        lora_alpha
    = adapter.dropout
        lora_dropout
    = adapter.target_modules
        lora_target_modules target_modules
    = adapter.layers_to_transform
        layers_to_transform peft_layers_to_transform
    = adapter.rank_pattern
        rank_pattern
    = adapter.alpha_pattern
        alpha_pattern
    = adapter.init_lora_weights
        init_lora_weights peft_init_lora_weights
    = adapter.bias
        bias
    = adapter.modules_to_save
        modules_to_save lora_modules_to_save additional_target
    = adapter.trainable_token_indices
        trainable_token_indices peft_trainable_token_indices
    = adapter.new_tokens
        new_tokens tokens add_tokens
    = adapter.new_special_tokens
        new_special_tokens add_special_tokens
    = adapter.unfrozen_parameters
        unfrozen_parameters
    = adapter.use_rslora
        use_rslora peft_use_rslora lora_use_rslora
    = checkpoint.every
        save_steps
    = checkpoint.keep
        save_total_limit saves_to_keep
    = eval.every
        eval_steps
    = eval.patience
        early_stopping_patience
    = eval.threshold
        early_stopping_threshold
    = eval.load_best
        load_best_model_at_end
    = neftune_noise_alpha
        noisy_embedding_alpha neftune_alpha
    """
)
# inside of a part: (part, name) → its own name
NESTED = {("adapter", name): "r" for name in ("lora_r", "rank", "lora_rank")} | {
    ("adapter", "lora_alpha"): "alpha",
    ("adapter", "lora_dropout"): "dropout",
    ("adapter", "lora_target_modules"): "target_modules",
    ("adapter", "peft_type"): "type",
    ("adapter", "rslora"): "use_rslora",
    ("adapter", "use_rs_lora"): "use_rslora",
    ("eval", "eval_steps"): "every",
    ("eval", "steps"): "every",
    ("eval", "max_samples"): "max_rows",
    ("checkpoint", "save_steps"): "every",
    ("checkpoint", "steps"): "every",
    ("checkpoint", "save_total_limit"): "keep",
}
# values of aliased keys, and of ours, under other names
VALUES = {
    "optim": _table(
        """
        = adamw
            adamw_torch adamw_torch_fused adamw_hf adamw_apex_fused
        = adamw_8bit
            adamw_bnb_8bit adam8bit
        = paged_adamw
            paged_adamw_32bit
        = lion
            lion_32bit
        = paged_lion
            paged_lion_32bit
        """
    ),
    "lr_scheduler_type": _table(
        """
        = warmup_stable_decay
            wsd
        """
    ),
    "dtype": _table(
        """
        = bf16
            bfloat16 torch.bfloat16
        = fp16
            float16 half torch.float16
        = fp32
            float32 float torch.float32
        """
    ),
}
# what to write instead
INSTEAD = _table(
    """
    = data: rows.jsonl
        datasets dataset dataset_name dataset_path train_dataset train_file train_data data_path
    = eval: {data: test.jsonl}
        test_datasets eval_dataset eval_file validation_file
    = data: {source: org/name, split: train}
        dataset_split train_split
    = data: {source: org/name, config: en}
        dataset_config dataset_config_name
    = data: {source: rows.jsonl, columns: {text: body}}
        dataset_text_field field text_column
    = data: folder/rows.jsonl
        dataset_dir media_dir
    = mix: {by: rows}
        mix_strategy interleave_probs dataset_probs
    = tokenizer: my_tokenizer
        tokenizer_config tokenizer_name processing_class tokenizer_name_or_path
    = data: {source: rows.jsonl, max_rows: 1000}
        max_samples
    = data: {source: rows.jsonl, format: alpaca}
        path ds_type
    = eval: {split: 0.05}
        val_set_size val_size test_size validation_split dataset_test_size eval_split_ratio
    = eval: {every: 50}
        eval_strategy evaluation_strategy evals_per_epoch do_eval
    = eval: {patience: 3}
        early_stopping early_stopping_steps
    = eval: {metrics: [exact_match, bleu]}
        compute_metrics predict_with_generate compute_accuracy do_causal_lm_eval eval_causal_lm_metrics
    = eval: {max_rows: 256}
        eval_max_samples max_eval_samples eval_sample_count
    = checkpoint: {every: 100}
        save_strategy saves_per_epoch
    = method: dpo
        stage rl training_type train_type finetuning_stage
    = method: orpo
        orpo_alpha lambda_orpo
    = adapter: {type: qlora}
        load_in_4bit qlora quantization_bit quantization_method bnb_4bit_quant_type bnb_4bit_compute_dtype
    = adapter: {type: qlora}
        bnb_4bit_use_double_quant double_quantization quantization_config bnb_config
    = adapter: {type: dora}
        use_dora peft_use_dora lora_use_dora
    = adapter: {init_lora_weights: pissa}
        pissa_init
    = adapter: {type: qlora, init_lora_weights: loftq}
        loftq_config
    = adapter: {type: full, unfrozen_parameters: [lm_head]}
        freeze_trainable_layers freeze_extra_modules num_layer_trainable freeze_trainable_modules
    = adapter: {type: full}
        full_finetuning finetuning_type
    = adapter: {type: lora, r: 16}
        use_peft peft_config lora_config lora peft
    = adapter: {target_modules: all-linear}
        lora_target target_layers lora_target_linear
    = adapter: {target_modules: [experts]}
        target_parameters lora_target_parameters
    = weights: fp8
        fp8 load_in_fp8
    = dtype: bf16
        bf16 bfloat16 pure_bf16
    = dtype: fp16
        fp16 float16 half
    = batch_size: 8
        train_batch_size
    = dtype: auto
        torch_dtype infer_dtype
    = train_on: all
        train_on_inputs train_on_prompt mask_inputs completion_only_loss
    = train_on: answers
        assistant_only_loss train_on_responses_only train_on_completions_only roles_to_train
    = train_on: last_answer
        mask_history train_on_last_turn_only
    = terminators: turn
        train_on_eos train_on_eot eot_tokens
    = chat_template: chat.jinja
        chat_template_jinja template chat_template_path
    = thinking: split
        enable_thinking reasoning_effort split_thinking
    = accelerate: true
        enable_liger_kernel liger_kernel use_liger use_liger_kernel use_unsloth liger_rope liger_rms_norm
        liger_swiglu
    = accelerate: true
        liger_fused_linear_cross_entropy lora_mlp_kernel lora_qkv_kernel lora_o_kernel unsloth_lora_mlp
    = accelerate: true
        flash_attention flash_attn sdp_attention xformers_attention attn_implementation torch_compile
    = activations: recompute
        gradient_checkpointing use_gradient_checkpointing disable_gradient_checkpointing
    = activations: recompute
        gradient_checkpointing_kwargs activation_checkpointing
    = activations: offload
        activation_offloading offload_activations
    = weights: streamed
        cpu_offload offload_params layer_offloading
    = gpus: 2
        fsdp fsdp_config fsdp_version fsdp_final_state_dict_type num_gpus n_gpu num_processes nproc_per_node
        world_size tensor_parallel_size
    = device: cpu
        use_cpu no_cuda
    = device: auto
        device_map
    = packing: auto
        multipack_real_batches eval_sample_packing eval_packing neat_packing packing_strategy
    = order: bucketed
        padding_free group_by_length bucket_by_length length_column_name
    = order: given
        shuffle_merged_datasets curriculum_sampling train_sampling_strategy disable_shuffling
    = overflow: truncate_left
        truncation_side truncation_mode long_sequence_strategy excess_length_strategy
    = on_error: skip
        skip_bad_rows skip_prepare_dataset
    = start_from: demo
        adapter_name_or_path lora_model_dir ref_adapter
    = schedule: {floor: 0.1}
        lr_scheduler_kwargs min_lr lr_scheduler_args
    = optim_args: {embedding_rate: 0.1}
        embedding_lr loraplus_lr_embedding
    = trust_remote_code: true
        trust_remote_code_model remote_code
    = samples: ["Who are you?"]
        generate_samples eval_prompts sample_prompts do_bench_eval
    """
)
# not there, and why
ABSENT = _table(
    """
    = runs have a folder of their own: name one by `--name demo`, their place by `--runs DIR`
        output_dir logging_dir overwrite_output_dir run_name dataset_prepared_path cache_dir
    = a run's name stands behind the command: `%%finetune --name demo`, `nbtune train spec.yaml --name demo`
        name
    = every step is an event, drawn live
        logging_steps logging_strategy logging_first_step log_level disable_tqdm plot_loss
    = nbtune keeps its own records in the run's folder, and sends none away
        report_to wandb wandb_project wandb_entity wandb_name wandb_watch wandb_log_model wandb_run_id use_wandb
    = nbtune keeps its own records in the run's folder, and sends none away
        mlflow_tracking_uri mlflow_experiment_name comet_project_name use_tensorboard swanlab_project
        trackio_project_name
    = a run is pushed when it has ended: `run.push_to_hub("me/name")` or `nbtune push`
        push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hf_use_auth_token
    = a run goes on by `run.resume()` or `nbtune resume RUN`
        resume_from_checkpoint auto_resume_from_checkpoints
    = hand over fewer rows, as in `data=rows[:1000]`
        dataset_shards shards
    = a spec is one training; answers come by `run.chat()`
        do_train do_predict
    = rows are prepared beside the training by as many processes as help
        dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor dataloader_drop_last
        dataset_num_proc
    = rows are prepared beside the training by as many processes as help
        preprocessing_num_workers dataset_processes dataset_batch_size dataset_kwargs remove_unused_columns
    = no optimizer here has a third beta
        adam_beta3
    = lr_scheduler_type names the schedules, `schedule: {…}` their numbers; there is no such one
        cosine_constant_lr_ratio lr_quadratic_warmup relora_steps
    = the held-out loss decides which checkpoint is the best
        metric_for_best_model greater_is_better
    = `adapter: {trainable_token_indices: [2, 3]}` trains single tokens' embeddings, by their numbers
        embeddings_to_train
    = `adapter: {init_lora_weights: pissa_niter_16}` has its iterations; what is saved always fits the base
        pissa_iter pissa_convert use_gradient_surgery
    = layers are found by their numbers
        layers_pattern
    = an adapter knows the layers' layout by itself; `adapter: {bias: all}` trains the model's own biases
        lora_bias fan_in_fan_out task_type lora_fan_in_fan_out r_pattern inference_mode
    = `adapter: {type: full, unfrozen_parameters: […]}` trains some of the weights; which ones does not change
        use_galore galore_rank use_badam badam_mode use_apollo apollo_rank
    = only text is trained
        freeze_vision_tower vision_lr
    = frozen weights have 16, 8 (fp8) or 4 bits; there is no int8
        load_in_8bit llm_int8_threshold llm_int8_skip_modules int8_quantization
    = the tokenizer's own special tokens stay as they are
        special_tokens
    = rows of new tokens are added as kernels like them
        resize_token_embeddings_to_32x resize_vocab
    = the model's own tokenizer is taken
        tokenizer_type tokenizer_use_fast tokenizer_legacy use_fast_tokenizer
        split_special_tokens
    = batches are padded as the kernels like it, and padding is never trained
        padding pad_to_sequence_len pad_to_multiple_of padding_side pad_token pad_sequences
    = positions stay those of the model
        rope_theta rope_scaling rope_type rope_scaling_factor shift_attn
    = several GPUs share a step by `gpus`; `deepspeed: CONFIG` is read, its stage done by FSDP2
        zero_stage ddp_timeout ddp_backend ddp_find_unused_parameters
        ddp_bucket_cap_mb
    = one row is not split over GPUs
        context_parallel_size sequence_parallel_degree tensor_parallel expert_parallel_size ring_attn_func
    = processes are started by nbtune itself, on one machine
        local_rank master_port nnodes node_rank rdzv_id
    = what a model is stands in its own config
        model_type type_of_model is_mistral_derived_model is_llama_derived_model is_falcon_derived_model
        model_revision revision_of_model
    = `method: grpo` has it in `rewards: {functions: [good], answers: 8, max_new_tokens: 128}`
        reward_funcs num_generations max_completion_length
    = rewards are functions, and answers are made by transformers (`rewards`)
        rm_adapter reward_model max_prompt_length temperature top_p vllm use_vllm vllm_mode
    = the reference is the model without its adapter (or what `start_from` names), and costs no memory
        ref_model precompute_ref_log_probs precompute_ref_batch_size sync_ref_model ref_model_mixup_alpha
        reference_free
    = losses are means of trained tokens over the whole step, and rates are events
        average_tokens_across_devices include_tokens_per_second include_num_input_tokens_seen
        auto_find_batch_size
    = the planner sees to memory and compilation
        torch_empty_cache_steps torch_compile_backend torch_compile_mode low_cpu_mem_usage use_reentrant
    = packs and evaluations are sized by the plan
        sample_packing_group_size sample_packing_bin_size sample_packing_sequentially eval_batch_size
        per_device_eval_batch_size eval_accumulation_steps
    = code of one's own goes into `data: {source: rows, function: my_rows}`
        plugins trainer_cls callbacks formatting_func data_collator optimizers
        preprocess_logits_for_metrics
    = exports are made of a finished run: `nbtune export RUN --gguf q4_k_m`
        export_dir export_size export_quantization_bit save_safetensors save_only_model save_method
        quantization_type
    = nbtune has no such switch
        use_mem_eff_path tf32 debug strict batch_flattening gc_steps seed_worker
        profile_memory
    """
)
