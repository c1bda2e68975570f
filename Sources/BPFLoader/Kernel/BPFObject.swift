import BPFPrograms
import CLibBPF
import Glibc
import Netlink

/// One object file in the kernel: programs that share maps. What is neither pinned nor attached goes with it.
final class BPFObject {
  private let object: OpaquePointer
  let name: String

  /// Opens the file; nothing is in the kernel yet.
  init(_ program: BPFProgram) throws(SystemError) {
    Self.silenceLibrary
    name = program.name
    var options = bpf_object_open_opts()
    options.sz = MemoryLayout<bpf_object_open_opts>.size
    let opened = program.object.withUnsafeBytes { bytes in
      program.name.withCString { name in
        options.object_name = name
        return bpf_object__open_mem(bytes.baseAddress, bytes.count, &options)
      }
    }
    guard let opened else { throw SystemError(operation: "open object", object: program.name, errno: errno) }
    object = opened
  }

  deinit { bpf_object__close(object) }

  /// libbpf writes to stderr otherwise; what it has to say comes with errors.
  static let silenceLibrary: Void = {
    libbpf_set_print { level, format, arguments in
      guard level == LIBBPF_WARN, let format, let arguments else { return 0 }
      var buffer = [CChar](repeating: 0, count: 4096)
      let length = vsnprintf(&buffer, buffer.count, format, arguments)
      LibraryWords.add(String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self))
      return length
    }
  }()

  // MARK: Before loading

  /// Sets a `const volatile` variable of the program.
  func setConstant<Value: BitwiseCopyable>(_ variable: String, _ value: Value) throws(SystemError) {
    var size = 0
    guard let map = bpf_object__find_map_by_name(object, ".rodata"),
      let initial = bpf_map__initial_value(map, &size),
      let place = constants[variable], place.count == MemoryLayout<Value>.size, place.upperBound <= size
    else { throw SystemError(operation: "set constant", object: "\(name): \(variable)", errno: EINVAL) }
    withUnsafeBytes(of: value) { bytes in
      UnsafeMutableRawBufferPointer(start: UnsafeMutableRawPointer(mutating: initial), count: size)[place]
        .copyBytes(from: bytes)
    }
  }

  /// What a `const volatile` variable of the program is; nil where there is none of that size.
  func constant<Value: BitwiseCopyable>(_ variable: String, as type: Value.Type) -> Value? {
    var size = 0
    guard let map = bpf_object__find_map_by_name(object, ".rodata"),
      let initial = bpf_map__initial_value(map, &size),
      let place = constants[variable], place.count == MemoryLayout<Value>.size, place.upperBound <= size
    else { return nil }
    return UnsafeRawPointer(initial).loadUnaligned(fromByteOffset: place.lowerBound, as: type)
  }

  /// BTF; lent.
  var typeInformation: OpaquePointer? { bpf_object__btf(object) }

  /// Where each constant lies in `.rodata`, by BTF.
  private var constants: [String: Range<Int>] {
    var found: [String: Range<Int>] = [:]
    guard let btf = typeInformation else { return found }
    let section = btf__find_by_name_kind(btf, ".rodata", 15)  // BTF_KIND_DATASEC
    guard section > 0, let type = btf__type_by_id(btf, UInt32(section)), let places = btf_var_secinfos(type) else {
      return found
    }
    for index in 0..<Int(btf_vlen(type)) {
      let place = places[index]
      guard let variable = btf__type_by_id(btf, place.type),
        let name = btf__name_by_offset(btf, variable.pointee.name_off)
      else { continue }
      found[String(cString: name)] = Int(place.offset)..<Int(place.offset + place.size)
    }
    return found
  }

  /// Uses a map that exists instead of making one.
  func reuse(_ map: String, _ descriptor: CInt) throws(SystemError) {
    let found = try self.map(map)
    try check("reuse map", map) { bpf_map__reuse_fd(found, descriptor) }
  }

  /// Has the verifier write its statistics for one program, whether or not it accepts it.
  ///
  /// - Parameter log: must live until the object has been loaded.
  func setStatistics(ofProgram name: String, into log: UnsafeMutableBufferPointer<CChar>) throws(SystemError) {
    let program = try program(name)
    try check("set log of", name) { bpf_program__set_log_level(program, 4) }  // BPF_LOG_STATS
    try check("set log of", name) { bpf_program__set_log_buf(program, log.baseAddress, log.count) }
  }

  func setMaximum(_ map: String, _ maximum: Int) throws(SystemError) {
    let found = try self.map(map)
    try check("set the bound of", map) { bpf_map__set_max_entries(found, UInt32(maximum)) }
  }

  func load() throws(SystemError) {
    LibraryWords.forget()
    let result = bpf_object__load(object)
    guard result == 0 else {
      throw SystemError(operation: "load", object: name, errno: -result, detail: LibraryWords.last)
    }
  }

  // MARK: What there is

  /// Without those that libbpf makes of variables.
  var mapNames: [String] {
    var names: [String] = []
    var map = bpf_object__next_map(object, nil)
    while let found = map {
      if !bpf_map__is_internal(found) { names.append(String(cString: bpf_map__name(found))) }
      map = bpf_object__next_map(object, found)
    }
    return names
  }

  var programNames: [String] {
    var names: [String] = []
    var program = bpf_object__next_program(object, nil)
    while let found = program {
      names.append(String(cString: bpf_program__name(found)))
      program = bpf_object__next_program(object, found)
    }
    return names
  }

  /// What the file asks for, before loading.
  func shape(of name: String) throws(SystemError) -> MapInfo {
    let found = try map(name)
    return MapInfo(
      type: bpf_map__type(found).rawValue, keySize: Int(bpf_map__key_size(found)),
      valueSize: Int(bpf_map__value_size(found)), maximum: Int(bpf_map__max_entries(found)),
      flags: bpf_map__map_flags(found))
  }

  /// Lent: it lives as long as this object.
  func descriptor(ofMap name: String) throws(SystemError) -> CInt { bpf_map__fd(try map(name)) }
  func duplicateDescriptor(ofMap name: String) throws(SystemError) -> FileDescriptor {
    let own = fcntl(try descriptor(ofMap: name), F_DUPFD_CLOEXEC, 0)
    guard own >= 0 else { throw SystemError(operation: "duplicate descriptor of", object: name, errno: errno) }
    return FileDescriptor(owning: own)
  }
  /// Lives on without this object.
  func openMap<Key: MapLayout, Value: MapLayout>(_ name: String) throws(SystemError) -> BPFMap<Key, Value> {
    try BPFMap(name, owning: try duplicateDescriptor(ofMap: name))
  }
  func descriptor(ofProgram name: String) throws(SystemError) -> CInt { bpf_program__fd(try program(name)) }
  func attachType(ofProgram name: String) throws(SystemError) -> bpf_attach_type {
    bpf_program__expected_attach_type(try program(name))
  }

  private func map(_ name: String) throws(SystemError) -> OpaquePointer {
    guard let map = bpf_object__find_map_by_name(object, name) else {
      throw SystemError(operation: "find map", object: "\(self.name): \(name)", errno: ENOENT)
    }
    return map
  }

  private func program(_ name: String) throws(SystemError) -> OpaquePointer {
    guard let program = bpf_object__find_program_by_name(object, name) else {
      throw SystemError(operation: "find program", object: "\(self.name): \(name)", errno: ENOENT)
    }
    return program
  }
}

/// The last that libbpf said on this thread: verifier logs are many lines, of which the last say what is wrong.
private enum LibraryWords {
  private static let key: pthread_key_t = {
    var key = pthread_key_t()
    pthread_key_create(&key) { lines in
      if let lines { Unmanaged<Lines>.fromOpaque(lines).release() }
    }
    return key
  }()

  private final class Lines { var text: [String] = [] }

  private static var lines: Lines {
    if let known = pthread_getspecific(key) { return Unmanaged<Lines>.fromOpaque(known).takeUnretainedValue() }
    let fresh = Lines()
    pthread_setspecific(key, Unmanaged.passRetained(fresh).toOpaque())
    return fresh
  }

  static func add(_ text: String) {
    let lines = lines
    lines.text.append(text)
    if lines.text.count > 40 { lines.text.removeFirst() }
  }
  static func forget() { lines.text = [] }
  static var last: String? { lines.text.isEmpty ? nil : lines.text.suffix(12).joined() }
}
