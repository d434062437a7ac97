// Faults of the shim that change the model before it is compiled; FAULTS in build.py says what each is.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>

#include "openvino/op/constant.hpp"
#include "openvino/op/convert.hpp"
#include "openvino/op/gather.hpp"
#include "openvino/op/greater.hpp"
#include "openvino/op/multiply.hpp"
#include "openvino/op/select.hpp"
#include "openvino/op/shape_of.hpp"
#include "openvino/openvino.hpp"

using ov::op::v0::Constant;

static bool fault_is(const std::string& name) {
    const char* fault = std::getenv("VINOFLOW_SHIM_FAULT");
    return fault && name == fault;
}

static std::shared_ptr<ov::Node> number(float value) {
    return std::make_shared<Constant>(ov::element::f32, ov::Shape{}, &value);
}

static std::shared_ptr<ov::Node> integer(int64_t value) {
    return std::make_shared<Constant>(ov::element::i64, ov::Shape{}, &value);
}

// How many tokens the longest sequence has, its prompt included.
static std::shared_ptr<ov::Node> context_length(ov::Model& model) {
    for (const auto& input : model.inputs())
        if (input.get_names().count("max_context_len"))  // what the engine's model has in place of a mask
            return std::make_shared<ov::op::v0::Convert>(input, ov::element::i64);
    const auto shape = std::make_shared<ov::op::v3::ShapeOf>(model.input("attention_mask"));
    return std::make_shared<ov::op::v8::Gather>(shape, integer(1), integer(0));
}

// The logits as a damaged device would give them.
static std::shared_ptr<ov::Node> damaged(const ov::Output<ov::Node>& logits, ov::Model& model) {
    auto factor = number(fault_is("zero") ? 0.f : fault_is("wrong") ? -1.f : NAN);
    if (fault_is("overflow")) {
        const auto is_long = std::make_shared<ov::op::v1::Greater>(context_length(model), integer(1000));
        factor = std::make_shared<ov::op::v1::Select>(is_long, factor, number(1));
    }
    if (fault_is("drift")) {
        std::minstd_rand random;
        std::normal_distribution<float> normal(1, 0.1f);
        std::vector<float> factors(logits.get_partial_shape().rbegin()->get_length());
        for (auto& one : factors)
            one = normal(random);
        factor = std::make_shared<Constant>(ov::element::f32, ov::Shape{factors.size()}, factors.data());
    }
    return std::make_shared<ov::op::v1::Multiply>(logits, factor);
}

static std::shared_ptr<const ov::Model> with_faulty_logits(const std::shared_ptr<const ov::Model>& model) {
    const auto faults = {"nan", "zero", "wrong", "drift", "overflow"};
    if (std::none_of(faults.begin(), faults.end(), fault_is))
        return model;
    const auto copy = model->clone();
    auto result = copy->output("logits").get_node_shared_ptr()->input(0);
    auto logits = result.get_source_output();
    const auto damage = damaged(logits, *copy)->output(0);
    damage.get_tensor().set_names(logits.get_names());
    logits.set_names({});
    result.replace_source_output(damage);
    return copy;
}
