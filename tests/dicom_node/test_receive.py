"""A real SCU sends to the receiver: what is acknowledged is in the spool, and the rest is refused truthfully."""

import socket
import ssl
import struct
import threading
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread, uid
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import CTImageStorage, MRImageStorage, Verification

from chestct import dicom
from dicom_node import receive, slices
from dicom_node.reading import read
from dicom_node.receive import Receiver, check
from dicom_node.spool import Spool, key_of
from tests.dicom_node.certificates import certificate_of_the_loopback
from tests.dicom_node.slices import ct_slice, levels, written
from tests.waiting import PATIENCE

Start = Callable[..., tuple[Receiver, Spool]]


def associate(receiver: Receiver, *, title: str = "SENDER", called: str = "CHESTCT", **options: Any) -> Association:
    entity = AE(title)
    entity.add_requested_context(Verification)
    syntaxes = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian]
    for sop_class in (CTImageStorage, MRImageStorage):
        entity.add_requested_context(sop_class, syntaxes)
    entity.add_requested_context(CTImageStorage, uid.RLELossless)
    return entity.associate("127.0.0.1", receiver.port, ae_title=called, **options)


def test_an_echo_is_answered(receiver: Start) -> None:
    association = associate(receiver()[0])
    assert association.send_c_echo().Status == 0x0000
    association.release()


def test_what_is_acknowledged_is_in_the_spool_as_it_was_sent(receiver: Start) -> None:
    node, spool = receiver()
    association = associate(node)
    sent = [
        ct_slice(number=1),
        ct_slice(number=2, syntax=uid.ImplicitVRLittleEndian),
        ct_slice(number=3, syntax=uid.RLELossless),
        ct_slice(series="1.2.3.5", number=1),
    ]
    assert [association.send_c_store(file).Status for file in sent] == [0x0000] * 4
    association.release()
    assert sorted(spool.series()) == sorted(key_of("1.2.3", series) for series in ("1.2.3.4", "1.2.3.5"))
    key = key_of("1.2.3", "1.2.3.4")
    assert len(spool.slices(key)) == 3
    stored = [dcmread(spool.slice_path(key, key_of(file.SOPInstanceUID))) for file in sent[:3]]
    assert [file.file_meta.TransferSyntaxUID.is_encapsulated for file in stored] == [False, False, True]
    assert stored == sent[:3]
    assert all((file.pixel_array == levels()).all() for file in stored)


def test_a_repeat_is_acknowledged_and_another_content_is_refused(receiver: Start) -> None:
    node, spool = receiver()
    association = associate(node)
    assert association.send_c_store(ct_slice()).Status == 0x0000
    assert association.send_c_store(ct_slice()).Status == 0x0000
    refused = association.send_c_store(ct_slice(levels()[::-1]))
    assert (refused.Status, refused.ErrorComment) == (0x0111, "another instance has this SOP Instance UID")
    association.release()
    assert [len(spool.slices(key)) for key in spool.series()] == [1]


def test_other_modalities_get_a_status_and_the_slices_between_them_are_stored(receiver: Start) -> None:
    node, spool = receiver()
    association = associate(node)
    other = ct_slice(number=2, SOPClassUID=MRImageStorage, Modality="MR")
    other.file_meta.MediaStorageSOPClassUID = MRImageStorage
    answers = [association.send_c_store(file) for file in (ct_slice(number=1), other, ct_slice(number=3))]
    assert [answer.Status for answer in answers] == [0x0000, 0x0122, 0x0000]
    assert answers[1].ErrorComment == "only CT Image Storage is taken"
    answer = association.send_c_store(ct_slice(number=4, Modality="PT"))
    assert (answer.Status, answer.ErrorComment) == (0xA900, "the modality is not CT")
    association.release()
    assert [len(spool.slices(key)) for key in spool.series()] == [2]


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.RLELossless])
def test_a_truncated_slice_is_refused_wherever_it_ends(syntax: str) -> None:
    data = written(ct_slice(syntax=syntax))
    assert check(data, "1.2.3.4.1") == (key_of("1.2.3", "1.2.3.4"), key_of("1.2.3.4.1"))
    for end in range(200, len(data) - 8, 211):
        with pytest.raises(receive.Refused) as refused:
            check(data[:end], "1.2.3.4.1")
        assert refused.value.status in (0xC000, 0xA900)


@pytest.mark.parametrize("changes", [{"SeriesInstanceUID": None}, {"StudyInstanceUID": ""}, {"SOPInstanceUID": "9.9"}])
def test_a_slice_without_the_uids_of_the_request_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(receive.Refused, match="UIDs") as refused:
        check(written(ct_slice(**changes)), "1.2.3.4.1")
    assert refused.value.status == 0xA900


def test_a_full_spool_is_told(receiver: Start) -> None:
    node, spool = receiver(max_spool_bytes=12_000)
    association = associate(node)
    answers = [association.send_c_store(ct_slice(number=number)) for number in (1, 2)]
    association.release()
    assert [answer.Status for answer in answers] == [0x0000, 0xA700]
    assert answers[1].ErrorComment == "the spool is full; send again later"
    assert [len(spool.slices(key)) for key in spool.series()] == [1]


def test_a_spool_that_cannot_be_written_is_told(receiver: Start) -> None:
    node, spool = receiver()
    series = spool.folder("x").parent
    series.rmdir()
    series.write_text("a file where the folder was")
    association = associate(node)
    answer = association.send_c_store(ct_slice())
    association.release()
    assert (answer.Status, answer.ErrorComment) == (0xA700, "the spool can't be written; send again later")


@pytest.mark.parametrize(
    ("callers", "title", "called"),
    [("SENDER", "STRANGER", "CHESTCT"), ("SENDER@192.0.2.0/24", "SENDER", "CHESTCT"), ("SENDER", "SENDER", "OTHER")],
)
def test_others_are_rejected_by_title_or_address(receiver: Start, callers: str, title: str, called: str) -> None:
    node, _ = receiver(callers=callers)
    rejections: list[tuple[int, int, int]] = []

    def note(event: Any) -> None:
        answer = event.assoc.acceptor.primitive
        rejections.append((answer.result, answer.result_source, answer.diagnostic))

    association = associate(node, title=title, called=called, evt_handlers=[(evt.EVT_REJECTED, note)])
    assert association.is_rejected
    assert rejections == [(1, 1, 3 if called == "CHESTCT" else 7)]
    accepted = associate(receiver(callers="SENDER@127.0.0.0/8")[0])
    assert accepted.is_established
    accepted.release()


def test_an_instance_that_is_too_long_ends_its_association(receiver: Start) -> None:
    node, spool = receiver(max_instance_bytes=20_000)
    association = associate(node)
    for number in range(1, 5):  # together longer than the bound
        assert association.send_c_store(ct_slice(number=number)).Status == 0x0000
    assert "Status" not in association.send_c_store(ct_slice(levels(512), number=5))
    association.join(PATIENCE)
    assert association.is_aborted
    assert [len(spool.slices(key)) for key in spool.series()] == [4]


def test_a_command_without_end_ends_its_association(receiver: Start) -> None:
    node, _ = receiver(max_instance_bytes=20_000)
    association = associate(node)
    fragment = struct.pack(">IBB", 10_002, association.accepted_contexts[0].context_id, 0x01) + bytes(10_000)
    for _ in range(3):
        association.dul.socket.send(struct.pack(">BBL", 4, 0, len(fragment)) + fragment)
    association.join(PATIENCE)
    assert association.is_aborted


def test_the_parts_of_a_command_among_those_of_an_instance_do_not_hide_its_length(receiver: Start) -> None:
    node, _ = receiver(max_instance_bytes=20_000)
    association = associate(node)
    context = association.accepted_contexts[0].context_id
    instance, command = (
        struct.pack(">IBB", 2 + size, context, bits) + bytes(size) for size, bits in ((9000, 0), (8, 1))
    )
    for _ in range(3):
        association.dul.socket.send(struct.pack(">BBL", 4, 0, len(command + instance)) + command + instance)
    association.join(PATIENCE)
    assert association.is_aborted


def store(number: int) -> C_STORE:
    """The request that stores a slice."""
    request, file = C_STORE(), ct_slice(number=number)
    request.MessageID, request.Priority = number, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = file.SOPClassUID, file.SOPInstanceUID
    request.DataSet = BytesIO(encode(file, False, True) or b"")
    return request


def echo(number: int) -> C_ECHO:
    request = C_ECHO()
    request.MessageID, request.AffectedSOPClassUID = number, Verification
    return request


@pytest.mark.parametrize(("request_of", "count"), [(store, 5), (echo, 40)])
def test_an_association_that_sends_on_without_waiting_for_answers_is_ended(
    receiver: Start, monkeypatch: pytest.MonkeyPatch, request_of: Callable[[int], C_STORE | C_ECHO], count: int
) -> None:
    checking, go_on = threading.Event(), threading.Event()

    def check_later(*_: object) -> None:
        checking.set()
        go_on.wait(PATIENCE)
        raise receive.Refused(0xC000, "malformed", "it was only to take long")

    monkeypatch.setattr(receive, "check", check_later)
    node, _ = receiver(max_instance_bytes=20_000)
    association = associate(node)
    contexts = {context.abstract_syntax: context.context_id for context in association.accepted_contexts[:2]}
    association.dimse.send_msg(store(1), contexts[CTImageStorage])
    assert checking.wait(PATIENCE)
    for number in range(2, 2 + count):
        request = request_of(number)
        association.dimse.send_msg(request, contexts[request.AffectedSOPClassUID])
    association.join(PATIENCE)
    go_on.set()
    assert association.is_aborted


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, len(value)) + value


def with_elements(before: bytes = b"", after: bytes = b"") -> bytes:
    """A slice with further elements before and after its pixels."""
    whole = written(ct_slice())
    pixels = whole.index(b"\xe0\x7f\x10\0OW")
    return whole[:pixels] + before + whole[pixels:] + after


def test_a_slice_that_inflates_to_too_much_is_refused() -> None:
    small, large = (with_elements(element(0x0099_1010, b"OB", bytes(size))) for size in (1 << 20, 64 << 20))
    for inflated, taken in ((small, True), (large, False)):
        file = dcmread(BytesIO(written(ct_slice(syntax=uid.DeflatedExplicitVRLittleEndian))))
        meta = written(file)[: 144 + file.file_meta.FileMetaInformationGroupLength]
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        begins = inflated.index(b"\x08\0\x08\0CS")
        data = meta + packer.compress(inflated[begins:]) + packer.flush()
        assert len(data) < 100_000
        if taken:
            assert check(data, "1.2.3.4.1")
        else:
            with pytest.raises(receive.Refused, match="too large") as refused:
                check(data, "1.2.3.4.1")
            assert refused.value.status == 0xC000


@pytest.mark.parametrize(
    "flood",
    [
        b"".join(struct.pack("<HH2sH", 0x0099, number, b"CS", 0) for number in range(0x1000, 0x7000)),
        element(0x0099_1010, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, 3 << 20) + bytes(3 << 20)),
    ],
)
def test_a_slice_of_too_many_elements_is_refused(flood: bytes) -> None:
    with pytest.raises(receive.Refused, match="too large"):
        check(with_elements(flood), "1.2.3.4.1")


def test_elements_after_the_pixels_are_neither_read_nor_sent_on(tmp_path: Path) -> None:
    flood = b"".join(struct.pack("<HH2sH", 0x7FE1, number, b"CS", 0) for number in range(0x1000, 0x7000))
    data = with_elements(after=flood)
    assert check(data, "1.2.3.4.1") == check(with_elements(), "1.2.3.4.1")
    assert max(read(data).keys()) == 0x7FE0_0010
    (tmp_path / "slice.dcm").write_bytes(data)
    assert len(slices.anonymous(tmp_path / "slice.dcm")) < len(with_elements())


def test_a_data_set_with_meta_information_of_its_own_is_refused() -> None:
    whole = written(ct_slice())
    begins = 144 + dcmread(BytesIO(whole)).file_meta.FileMetaInformationGroupLength
    syntax = whole[whole.index(b"\x02\0\x10\0UI") :][:28]
    assert check(whole, "1.2.3.4.1")
    with pytest.raises(receive.Refused, match="can't be parsed"):
        check(whole[:begins] + syntax + whole[begins:], "1.2.3.4.1")


def test_associations_beyond_the_limit_are_rejected_for_now(receiver: Start) -> None:
    node, _ = receiver(max_associations=1)
    first = associate(node)
    second = associate(node)
    assert second.is_rejected
    assert second.acceptor.primitive.result == 0x02
    first.release()


def test_several_senders_at_once_lose_nothing(receiver: Start) -> None:
    node, spool = receiver()
    statuses: list[int] = []

    def send(series: str) -> None:
        association = associate(node)
        for number in range(1, 9):
            statuses.append(association.send_c_store(ct_slice(series=series, number=number)).Status)
        association.release()

    senders = [threading.Thread(target=send, args=(f"1.2.3.{count}",)) for count in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert statuses == [0x0000] * 32
    assert [len(spool.slices(key)) for key in spool.series()] == [8] * 4


def test_the_transfer_syntaxes_are_those_that_the_service_reads() -> None:
    assert set(receive.SYNTAXES) == {*dicom._NATIVE, *dicom._DECODERS}


@pytest.mark.parametrize("size", [256 * 1024 + 1, 0x7FFFFFFF])
def test_a_pdu_that_is_announced_as_too_long_ends_its_connection(receiver: Start, size: int) -> None:
    node, _ = receiver()
    with socket.create_connection(("127.0.0.1", node.port), timeout=PATIENCE) as stranger:
        stranger.sendall(struct.pack(">BBL", 1, 0, size))
        assert stranger.recv(1) == b""


def test_an_association_with_every_transfer_syntax_is_accepted(receiver: Start) -> None:
    entity = AE("SENDER")
    for context in AllStoragePresentationContexts[:128]:
        entity.add_requested_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
    association = entity.associate("127.0.0.1", receiver()[0].port, ae_title="CHESTCT")
    assert association.is_established
    association.release()


def test_tls_is_spoken_and_a_peer_without_a_certificate_is_left_out(receiver: Start, tmp_path: Path) -> None:
    pem, key = certificate_of_the_loopback(tmp_path)
    node, spool = receiver(certificate=pem, certificate_key=key, authorities=pem)
    with socket.create_connection(("127.0.0.1", node.port)):  # says nothing, and keeps nobody waiting
        trusting = ssl.create_default_context(cafile=str(pem))
        assert not associate(node).is_established
        assert not associate(node, tls_args=(trusting, "localhost")).is_established
        known = ssl.create_default_context(cafile=str(pem))
        known.load_cert_chain(pem, key)
        association = associate(node, tls_args=(known, "localhost"))
        assert association.is_established
        assert association.send_c_store(ct_slice()).Status == 0x0000
        association.release()
    assert [len(spool.slices(key)) for key in spool.series()] == [1]


def test_a_refusal_holds_nothing_of_the_header(receiver: Start, caplog: pytest.LogCaptureFixture) -> None:
    node, _ = receiver()
    association = associate(node)
    answer = association.send_c_store(ct_slice(Modality="PT"))
    association.release()
    assert isinstance(answer, Dataset)
    assert "Secret" not in str(answer) + caplog.text
    assert "SECRET" not in str(answer) + caplog.text
