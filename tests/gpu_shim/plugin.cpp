// A GPU plugin for machines without a GPU: OpenVINO's CPU plugin under the name GPU.0, which says so of itself.
//
// It makes the CPU plugin and puts functions of its own in some places of its table of virtual functions. The wheel
// ships no header for that table; the places are those of OpenVINO 2026.4 (build.py checks the version).
// VINOFLOW_SHIM_FAULT makes it fail as drivers do: faults.hpp, and FAULTS in build.py.
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "faults.hpp"
#include "openvino/openvino.hpp"
#include "openvino/runtime/intel_gpu/properties.hpp"

// What the wheel's headers lack of OpenVINO 2026.4, as far as it is needed here.
namespace ov {
class ICompiledModel;
class ITensor;

class OPENVINO_RUNTIME_API IPlugin {
public:
    void set_device_name(const std::string& name);
};

template <class T>
struct Loaded {
    std::shared_ptr<T> object;
    std::shared_ptr<void> library;
};

class IRemoteContext : public std::enable_shared_from_this<IRemoteContext> {
public:
    virtual ~IRemoteContext() = default;
    virtual const std::string& get_device_name() const = 0;
    virtual const AnyMap& get_property() const = 0;
    virtual Loaded<ITensor> create_tensor(const element::Type&, const Shape&, const AnyMap&) = 0;
    virtual Loaded<ITensor> create_host_tensor(element::Type, const Shape&) = 0;
};
}  // namespace ov
extern "C" char remote_tensor_type asm("_ZTIN2ov13IRemoteTensorE");  // its std::type_info

using Plugin = const ov::IPlugin*;
using Compiled = std::shared_ptr<ov::ICompiledModel>;
using Model = std::shared_ptr<const ov::Model>;
using Table = void**;

// Places in the tables: of a plugin, of a compiled model, of a tensor.
enum { COMPILE = 0, SET = 3, GET = 4, CONTEXT = 6, IMPORT_STREAM = 7, IMPORT_TENSOR = 9, QUERY = 11 };
enum { COMPILED_GET = 6 };
enum { TYPE = -1, END_OF_HOST_TENSOR = 15, COPY_FROM = 19, END_OF_REMOTE_TENSOR };
static Table cpu_plugin, cpu_compiled;  // the CPU's own tables

// Give an object a table with functions of ours, and return its own.
static Table take_over(void* object, const std::map<int, void*>& places) {
    auto& table = *static_cast<Table*>(object);
    const Table own = table;
    auto* copy = new void*[34];  // never freed: it lives as long as the process; -2 and -1 are type information
    std::copy(own - 2, own + 32, copy);
    for (const auto& [place, function] : places)
        copy[2 + place] = function;
    table = copy + 2;
    return own;
}

template <class Result, class... Arguments>
static Result call(Table table, int place, Arguments... arguments) {
    return reinterpret_cast<Result (*)(Arguments...)>(table[place])(arguments...);
}

// There is one device, 0; the CPU knows no ids.
static ov::AnyMap without_id(ov::AnyMap properties) {
    const auto id = properties.find("DEVICE_ID");
    if (id != properties.end()) {
        if (id->second.as<std::string>() != "0")
            OPENVINO_THROW("[GPU] Invalid device_id: ", id->second.as<std::string>());
        properties.erase(id);
    }
    return properties;
}

static ov::Any compiled_get_property(const ov::ICompiledModel* self, const std::string& name) {
    if (name == ov::execution_devices.name())
        return std::vector<std::string>{fault_is("elsewhere") ? "CPU" : "GPU.0"};
    return call<ov::Any, const ov::ICompiledModel*, const std::string&>(cpu_compiled, COMPILED_GET, self, name);
}

static Compiled renamed(Compiled compiled) {
    cpu_compiled = take_over(compiled.get(), {{COMPILED_GET, (void*)compiled_get_property}});
    return compiled;
}

static Compiled compile(Plugin self, const Model& model, const ov::AnyMap& properties) {
    const auto on_device = without_id(properties);
    if (fault_is("refuse"))
        OPENVINO_THROW("[GPU] ProgramBuilder build failed! [GPU] clWaitForEvents, error code: -14");
    if (fault_is("crash"))
        std::abort();
    const Model compiled = with_faulty_logits(model);
    return renamed(
        call<Compiled, Plugin, const Model&, const ov::AnyMap&>(cpu_plugin, COMPILE, self, compiled, on_device));
}

// The engine keeps its KV cache in tensors of the device's context: here they are the host's, called remote.
struct HostTensor : ov::Tensor {
    using ov::Tensor::_impl;
    using ov::Tensor::Tensor;
    explicit HostTensor(const ov::ITensor* not_owned)
        : ov::Tensor({const_cast<ov::ITensor*>(not_owned), [](ov::ITensor*) {}}, nullptr) {}
};

// As the cache grows, what it held becomes the beginning of a larger tensor. Offsets are in bytes.
static void copy_from(const ov::ITensor* self,
                      const std::shared_ptr<const ov::ITensor>& source,
                      size_t from,
                      size_t to,
                      const ov::Shape& shape) {
    HostTensor mine(self), other(source.get());
    if (shape != other.get_shape())
        OPENVINO_THROW("the GPU shim copies whole tensors only");
    std::memcpy(static_cast<char*>(mine.data()) + to, static_cast<char*>(other.data()) + from, other.get_byte_size());
}

static void not_made() {
    OPENVINO_THROW("the GPU shim cannot do this with a tensor");
}

struct HostMemory : ov::IRemoteContext {
    const std::string name = "GPU.0";
    const ov::AnyMap none;

    const std::string& get_device_name() const override {
        return name;
    }
    const ov::AnyMap& get_property() const override {
        return none;
    }
    ov::Loaded<ov::ITensor> create_host_tensor(ov::element::Type type, const ov::Shape& shape) override {
        return {HostTensor(type, shape)._impl, {}};
    }
    ov::Loaded<ov::ITensor> create_tensor(const ov::element::Type& type,
                                          const ov::Shape& shape,
                                          const ov::AnyMap&) override {
        const HostTensor tensor(type, shape);
        std::map<int, void*> places{{TYPE, &remote_tensor_type}};
        for (int place = END_OF_HOST_TENSOR; place < END_OF_REMOTE_TENSOR; ++place)
            places[place] = (void*)not_made;
        places[COPY_FROM] = (void*)copy_from;
        take_over(tensor._impl.get(), places);
        return {tensor._impl, {}};
    }
};

static ov::Loaded<ov::IRemoteContext> get_default_context(Plugin, const ov::AnyMap&) {
    return {std::make_shared<HostMemory>(), {}};
}

static void set_property(Plugin self, const ov::AnyMap& properties) {
    call<void, Plugin, const ov::AnyMap&>(cpu_plugin, SET, self, without_id(properties));
}

static ov::Any get_property(Plugin self, const std::string& name, const ov::AnyMap& arguments) {
    const auto on_device = without_id(arguments);
    const std::map<std::string, ov::Any> of_gpu{
        {ov::device::full_name.name(), "TEST SHIM: the CPU in a GPU's name"},
        {ov::device::id.name(), "0"},
        {ov::available_devices.name(), std::vector<std::string>{"0"}},
        {ov::intel_gpu::memory_statistics.name(), std::map<std::string, uint64_t>{}},
        {ov::intel_gpu::device_total_mem_size.name(), uint64_t{8} << 30},
        {ov::intel_gpu::device_max_alloc_mem_size.name(), uint64_t{8} << 30},
    };
    const auto known = of_gpu.find(name);
    if (known != of_gpu.end())
        return known->second;
    return call<ov::Any, Plugin, const std::string&, const ov::AnyMap&>(cpu_plugin, GET, self, name, on_device);
}

static Compiled import_stream(Plugin self, std::istream& model, const ov::AnyMap& properties) {
    return renamed(call<Compiled, Plugin, std::istream&, const ov::AnyMap&>(
        cpu_plugin, IMPORT_STREAM, self, model, without_id(properties)));
}

static Compiled import_tensor(Plugin self, const ov::Tensor& model, const ov::AnyMap& properties) {
    return renamed(call<Compiled, Plugin, const ov::Tensor&, const ov::AnyMap&>(
        cpu_plugin, IMPORT_TENSOR, self, model, without_id(properties)));
}

static ov::SupportedOpsMap query(Plugin self, const Model& model, const ov::AnyMap& properties) {
    return call<ov::SupportedOpsMap, Plugin, const Model&, const ov::AnyMap&>(
        cpu_plugin, QUERY, self, model, without_id(properties));
}

template <class Function>
static Function* of_cpu(const char* name) {
    void* library = dlopen("libopenvino_intel_cpu_plugin.so", RTLD_NOW);
    if (!library)
        OPENVINO_THROW("the GPU shim finds no CPU plugin: ", dlerror());
    return reinterpret_cast<Function*>(dlsym(library, name));
}

// What OpenVINO looks for in a plugin's library.
extern "C" {
#pragma GCC visibility push(default)
void create_extensions(std::vector<std::shared_ptr<ov::Extension>>& extensions) {
    of_cpu<decltype(create_extensions)>("create_extensions")(extensions);
}

void create_plugin_engine(std::shared_ptr<ov::IPlugin>& plugin) {
    of_cpu<decltype(create_plugin_engine)>("create_plugin_engine")(plugin);
    plugin->set_device_name("GPU");
    cpu_plugin = take_over(plugin.get(),
                           {{COMPILE, (void*)compile},
                            {SET, (void*)set_property},
                            {GET, (void*)get_property},
                            {CONTEXT, (void*)get_default_context},
                            {IMPORT_STREAM, (void*)import_stream},
                            {IMPORT_TENSOR, (void*)import_tensor},
                            {QUERY, (void*)query}});
}
#pragma GCC visibility pop
}
