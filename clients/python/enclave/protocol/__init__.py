"""Enclave's wire protocol without sockets: the messages, the methods, and the session machine of both sides.

The daemon, the Python client and tests import it; it imports neither ZeroMQ nor the client, and does no I/O.
docs/protocol.md tells the same in words.
"""

from __future__ import annotations

from enclave.protocol.errors import ERROR_CODES as ERROR_CODES
from enclave.protocol.errors import ErrorCode as ErrorCode
from enclave.protocol.errors import Fault as Fault
from enclave.protocol.errors import LocalProtocolError as LocalProtocolError
from enclave.protocol.errors import ProtocolError as ProtocolError
from enclave.protocol.errors import RemoteProtocolError as RemoteProtocolError
from enclave.protocol.errors import error_code as error_code
from enclave.protocol.joining import ChunkJoiner as ChunkJoiner
from enclave.protocol.messages import PROTOCOL_VERSION as PROTOCOL_VERSION
from enclave.protocol.messages import AttachmentInfo as AttachmentInfo
from enclave.protocol.messages import Bye as Bye
from enclave.protocol.messages import Cancel as Cancel
from enclave.protocol.messages import Chunk as Chunk
from enclave.protocol.messages import Credit as Credit
from enclave.protocol.messages import Error as Error
from enclave.protocol.messages import Hello as Hello
from enclave.protocol.messages import Limits as Limits
from enclave.protocol.messages import Message as Message
from enclave.protocol.messages import Ping as Ping
from enclave.protocol.messages import Pong as Pong
from enclave.protocol.messages import Priority as Priority
from enclave.protocol.messages import Progress as Progress
from enclave.protocol.messages import Request as Request
from enclave.protocol.messages import RequestId as RequestId
from enclave.protocol.messages import Result as Result
from enclave.protocol.messages import Stage as Stage
from enclave.protocol.messages import Welcome as Welcome
from enclave.protocol.messages import attach as attach
from enclave.protocol.messages import failure as failure
from enclave.protocol.messages import refusal as refusal
from enclave.protocol.methods import METHODS as METHODS
from enclave.protocol.methods import Method as Method
from enclave.protocol.methods import check_request as check_request
from enclave.protocol.methods import read_chunks as read_chunks
from enclave.protocol.methods import read_params as read_params
from enclave.protocol.methods import read_result as read_result
from enclave.protocol.methods import write_body as write_body
from enclave.protocol.session import SPOKEN as SPOKEN
from enclave.protocol.session import Role as Role
from enclave.protocol.session import Session as Session
from enclave.protocol.session import State as State
from enclave.protocol.session import Versions as Versions
